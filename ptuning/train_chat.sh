#!/usr/bin/env bash
# P-Tuning v2 on conversations. Variables: CHAT_TRAIN_DATA, CHAT_VAL_DATA, CHECKPOINT_NAME, and those of settings.sh.
source "$(dirname "$0")/settings.sh"
choose PRE_SEQ_LEN 64 128
choose LR 2e-1 1e-2
choose BITS "" 4
choose MAX_STEPS 240 3000
choose SAVE_STEPS 60 1000
choose BATCH 8 1
choose ACCUMULATION 1 16
choose LENGTH 160 256
choose CHAT_TRAIN_DATA data/talks/train.json chat/train.json
choose CHAT_VAL_DATA data/talks/dev.json chat/dev.json
CHECKPOINT_NAME=${CHECKPOINT_NAME:-output/$NAME-chat-pt-$PRE_SEQ_LEN-$LR}

mapfile -t QUANTIZATION < <(optional --quantization_bit "$BITS")
$PYTHON main.py \
    --do_train \
    --train_file "$CHAT_TRAIN_DATA" \
    --validation_file "$CHAT_VAL_DATA" \
    --prompt_column prompt \
    --response_column response \
    --history_column history \
    --overwrite_cache \
    --model_name_or_path "$MODEL" \
    --output_dir "$CHECKPOINT_NAME" \
    --overwrite_output_dir \
    --max_source_length "$LENGTH" \
    --max_target_length "$LENGTH" \
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
