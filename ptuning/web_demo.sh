#!/usr/bin/env bash
# The web page with a trained prefix. Variables: as evaluate.sh; flags of web_demo.py may follow the name of this script.
source "$(dirname "$0")/settings.sh"
choose PRE_SEQ_LEN 64 128
choose LR 2e-1 2e-2
OUTPUT=${OUTPUT:-output/$NAME-pt-$PRE_SEQ_LEN-$LR}

$PYTHON web_demo.py \
    --model_name_or_path "$MODEL" \
    --ptuning_checkpoint "${CHECKPOINT:-$OUTPUT${STEP:+/checkpoint-$STEP}}" \
    --pre_seq_len "$PRE_SEQ_LEN" \
    "$@"
