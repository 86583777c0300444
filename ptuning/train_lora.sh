#!/usr/bin/env bash
# LoRA: train a low-rank update. Variables: RANK, MERGE_TO, and those of settings.sh.
source "$(dirname "$0")/settings.sh"
choose RANK 8 8
choose LR 5e-3 5e-4
choose TARGETS query_key_value,dense,dense_h_to_4h,dense_4h_to_h query_key_value
choose BITS "" ""
choose MAX_STEPS 240 3000
choose SAVE_STEPS 60 1000
choose BATCH 8 1
choose ACCUMULATION 1 16
choose SOURCE_LENGTH 64 64
choose TARGET_LENGTH 96 64
OUTPUT=${OUTPUT:-output/$NAME-lora-$RANK-$LR}

mapfile -t MORE < <(optional --quantization_bit "$BITS"; optional --merge_to "${MERGE_TO:-}")
$PYTHON main.py \
    --do_train \
    --train_file "$TRAIN_FILE" \
    --prompt_column content \
    --response_column summary \
    --model_name_or_path "$MODEL" \
    --output_dir "$OUTPUT" \
    --overwrite_output_dir \
    --max_source_length "$SOURCE_LENGTH" \
    --max_target_length "$TARGET_LENGTH" \
    --per_device_train_batch_size "$BATCH" \
    --gradient_accumulation_steps "$ACCUMULATION" \
    --max_steps "$MAX_STEPS" \
    --logging_steps 10 \
    --save_steps "$SAVE_STEPS" \
    --learning_rate "$LR" \
    --lora_rank "$RANK" \
    --lora_target "$TARGETS" \
    "${MORE[@]}" "$@"
