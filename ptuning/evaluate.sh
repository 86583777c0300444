#!/usr/bin/env bash
# Answer the held-out rows with a trained prefix, and score the answers. CHECKPOINT= (empty) scores the base model.
# Variables: STEP (the checkpoint of that step), CHECKPOINT, and those of settings.sh.
source "$(dirname "$0")/settings.sh"
choose PRE_SEQ_LEN 64 128
choose LR 2e-1 2e-2
choose BITS "" 4
choose BATCH 20 1
choose SOURCE_LENGTH 64 64
choose TARGET_LENGTH 96 64
choose FORGETTING data/general.jsonl ""
OUTPUT=${OUTPUT:-output/$NAME-pt-$PRE_SEQ_LEN-$LR}
CHECKPOINT=${CHECKPOINT-$OUTPUT${STEP:+/checkpoint-$STEP}}
[ -n "$CHECKPOINT" ] || FORGETTING=

mapfile -t MORE < <(optional --quantization_bit "$BITS"; optional --ptuning_checkpoint "$CHECKPOINT"
    optional --forgetting_file "$FORGETTING")
$PYTHON main.py \
    --do_predict \
    --validation_file "$DEV_FILE" \
    --test_file "$DEV_FILE" \
    --overwrite_cache \
    --prompt_column content \
    --response_column summary \
    --model_name_or_path "$MODEL" \
    --output_dir "${CHECKPOINT:-output/$NAME-base}" \
    --overwrite_output_dir \
    --max_source_length "$SOURCE_LENGTH" \
    --max_target_length "$TARGET_LENGTH" \
    --per_device_eval_batch_size "$BATCH" \
    --predict_with_generate \
    "${MORE[@]}" "$@"
