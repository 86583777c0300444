#!/usr/bin/env bash
# Answer the held-out rows with a model whose every weight was trained, and score the answers.
# Variables: STEP (the checkpoint of that step), CHECKPOINT (any model folder), and those of settings.sh.
source "$(dirname "$0")/settings.sh"
choose LR 1e-3 1e-4
choose BATCH 20 1
choose SOURCE_LENGTH 64 256
choose TARGET_LENGTH 96 256
OUTPUT=${OUTPUT:-output/$NAME-ft-$LR}
CHECKPOINT=${CHECKPOINT:-$OUTPUT${STEP:+/checkpoint-$STEP}}

$PYTHON main.py \
    --do_predict \
    --validation_file "$DEV_FILE" \
    --test_file "$DEV_FILE" \
    --overwrite_cache \
    --prompt_column content \
    --response_column summary \
    --model_name_or_path "$CHECKPOINT" \
    --output_dir "$CHECKPOINT" \
    --overwrite_output_dir \
    --max_source_length "$SOURCE_LENGTH" \
    --max_target_length "$TARGET_LENGTH" \
    --per_device_eval_batch_size "$BATCH" \
    --predict_with_generate \
    "$@"
