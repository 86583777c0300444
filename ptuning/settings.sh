# What the scripts of this folder share. Every variable can be given from outside:
#
#     MODEL=../chatglm-6b DATA=AdvertiseGen PRE_SEQ_LEN=128 bash train.sh
#
# Without MODEL the bundled demo model learns the bundled data: small sizes, a few minutes on two CPU cores. With MODEL
# the numbers are those published for ChatGLM-6B. Relative paths start where the script is called; input files that are
# not there are looked for in this folder.
set -euo pipefail
CALLER=$PWD
cd "$(dirname "${BASH_SOURCE[0]}")"

# from_caller TEST NAME...: makes relative paths in these variables absolute where `[ TEST path ]` holds.
from_caller() {
    local test=$1 name
    for name in "${@:2}"; do
        case ${!name-} in "" | /* | demo) continue ;; esac
        if [ "$test" "$CALLER/${!name}" ]; then printf -v "$name" %s "$CALLER/${!name}"; fi
    done
}
from_caller -e MODEL DATA TRAIN_FILE DEV_FILE CHAT_TRAIN_DATA CHAT_VAL_DATA CHECKPOINT FORGETTING
from_caller -n OUTPUT CHECKPOINT_NAME MERGE_TO

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
