#!/usr/bin/env bash
# Train every weight: with DeepSpeed where it is installed, else with torchrun (FSDP shards the model over several GPUs).
# Variables: NUM_GPUS, PRECISION (--fp16, --bf16 or nothing), and those of settings.sh.
export CUDA_VISIBLE_DEVICES=${CUDA_VISIBLE_DEVICES-$(nvidia-smi --query-gpu=index --format=csv,noheader 2>/dev/null | paste -sd, || true)}
source "$(dirname "$0")/settings.sh"
NUM_FOUND=$(nvidia-smi -L 2>/dev/null | wc -l || true)
choose NUM_GPUS "$((NUM_FOUND > 0 ? 1 : 0))" "$((NUM_FOUND > 0 ? NUM_FOUND : 0))"
choose LR 1e-3 1e-4
choose PRECISION "" "$([ "$NUM_GPUS" -gt 0 ] && echo --fp16 || true)"
choose MAX_STEPS 240 5000
choose SAVE_STEPS 120 1000
choose BATCH 8 4
choose SOURCE_LENGTH 64 64
choose TARGET_LENGTH 96 64
OUTPUT=${OUTPUT:-output/$NAME-ft-$LR}
PORT=${MASTER_PORT:-$((10000 + RANDOM % 50000))}

if [ "$NUM_GPUS" -gt 0 ] && command -v deepspeed > /dev/null; then
    LAUNCH=(deepspeed "--num_gpus=$NUM_GPUS" --master_port "$PORT" main.py --deepspeed deepspeed.json)
elif [ "$NUM_GPUS" -gt 1 ]; then
    LAUNCH=($PYTHON -m torch.distributed.run "--nproc_per_node=$NUM_GPUS" --master_port "$PORT" main.py
        --fsdp --fsdp_config fsdp.json)
else
    LAUNCH=($PYTHON main.py)
fi
"${LAUNCH[@]}" \
    --do_train \
    --train_file "$TRAIN_FILE" \
    --test_file "$DEV_FILE" \
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
    --gradient_accumulation_steps 1 \
    --predict_with_generate \
    --max_steps "$MAX_STEPS" \
    --logging_steps 10 \
    --save_steps "$SAVE_STEPS" \
    --learning_rate "$LR" \
    $PRECISION "$@"
