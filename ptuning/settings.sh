# What the scripts of this folder share. Every variable can be given from outside:
#
#     MODEL=THUDM/chatglm-6b DATA=AdvertiseGen PRE_SEQ_LEN=128 bash train.sh
#
# Without MODEL the bundled demo model learns the bundled data: small sizes, a few minutes on two CPU cores. With MODEL
# the numbers are those published for ChatGLM-6B.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")"

PYTHON=${PYTHON:-python3}
MODEL=${MODEL:-demo}
export CUDA_VISIBLE_DEVICES=${CUDA_VISIBLE_DEVICES-0}

# choose NAME DEMO_VALUE REAL_VALUE: sets NAME unless it is set already.
choose() {
    if [ -z "${!1+x}" ]; then
        if [ "$MODEL" = demo ]; then printf -v "$1" %s "$2"; else printf -v "$1" %s "$3"; fi
    fi
}

# optional FLAG VALUE: the flag with its value, or nothing for an empty value.
optional() {
    [ -z "$2" ] || printf '%s\n' "$1" "$2"
}

NAME=$([ "$MODEL" = demo ] && echo demo || echo adgen-chatglm-6b)
choose DATA data/clothes AdvertiseGen
TRAIN_FILE=${TRAIN_FILE:-$DATA/train.json}
DEV_FILE=${DEV_FILE:-$DATA/dev.json}
