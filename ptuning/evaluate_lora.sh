#!/usr/bin/env bash
# Answer the held-out rows with a trained LoRA update, and score the answers. Variables: as evaluate.sh, RANK.
source "$(dirname "$0")/settings.sh"
choose RANK 8 8
choose LR 5e-3 5e-4
choose BITS "" ""
choose BATCH 20 1
choose SOURCE_LENGTH 64 64
choose TARGET_LENGTH 96 64
choose FORGETTING data/general.jsonl ""
OUTPUT=${OUTPUT:-output/$NAME-lora-$RANK-$LR}
CHECKPOINT=${CHECKPOINT:-$OUTPUT${STEP:+/checkpoint-$STEP}}

mapfile -t MORE < <(optional --quantization_bit "$BITS"; optional --forgetting_file "$FORGETTING")
$PYTHON main.py \
    --do_predict \
    --test_file "$DEV_FILE" \
    --prompt_column content \
    --response_column summary \
    --model_name_or_path "$MODEL" \
    --lora_checkpoint "$CHECKPOINT" \
    --output_dir "$CHECKPOINT" \
    --max_source_length "$SOURCE_LENGTH" \
    --max_target_length "$TARGET_LENGTH" \
    --per_device_eval_batch_size "$BATCH" \
    --predict_with_generate \
    "${MORE[@]}" "$@"
