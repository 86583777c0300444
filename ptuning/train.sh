#!/usr/bin/env bash
# P-Tuning v2: train a prefix. Variables: see settings.sh; more flags of main.py may follow the name of this script.
source "$(dirname "$0")/settings.sh"
choose PRE_SEQ_LEN 64 128
choose LR 2e-1 2e-2
choose BITS "" 4
choose MAX_STEPS 240 3000
choose SAVE_STEPS 60 1000
choose BATCH 8 1
choose ACCUMULATION 1 16
choose SOURCE_LENGTH 64 64
choose TARGET_LENGTH 96 64
OUTPUT=${OUTPUT:-output/$NAME-pt-$PRE_SEQ_LEN-$LR}

mapfile -t QUANTIZATION < <(optional --quantization_bit "$BITS")
$PYTHON main.py \
    --do_train \
    --train_file "$TRAIN_FILE" \
    --validation_file "$DEV_FILE" \
    --prompt_column content \
    --response_column summary \
    --overwrite_cache \
    --model_name_or_path "$MODEL" \
    --output_dir "$OUTPUT" \
    --overwrite_output_dir \
    --max_source_length "$SOURCE_LENGTH" \
    --max_target_length "$TARGET_LENGTH" \
    --per_device_train_batch_size "$BATCH" \
    --per_device_eval_batch_size 1 \
    --gradient_accumulation_steps "$ACCUMULATION" \
    --predict_with_generate \
    --max_steps "$MAX_STEPS" \
    --logging_steps 10 \
    --save_steps "$SAVE_STEPS" \
    --learning_rate "$LR" \
    --pre_seq_len "$PRE_SEQ_LEN" \
    "${QUANTIZATION[@]}" "$@"
