#!/usr/bin/env bash
# Runs the tests once on the lowest version of every range in requirements.txt.
# TORCH=torch==2.13.0 tools/test_lowest_versions.sh   uses another torch, e.g. the CPU build a machine has.
set -euo pipefail
cd "$(dirname "$0")/.."
venv=$(mktemp -d)
trap 'rm -rf "$venv"' EXIT
python3 -m venv "$venv"
lowest=$(sed -nE 's/^([A-Za-z_]+)>=([0-9.]+).*/\1==\2/p' requirements.txt | grep -v '^torch==' \
    | sed -E 's/^([A-Za-z_]+==[0-9]+)$/\1.0.0/; s/^([A-Za-z_]+==[0-9]+\.[0-9]+)$/\1.0/')
# shellcheck disable=SC2086
"$venv/bin/pip" install -q "${TORCH:-torch==2.11.0}" $lowest
grep -v '^-r' requirements-dev.txt | "$venv/bin/pip" install -q -r /dev/stdin
"$venv/bin/pip" list 2>/dev/null | grep -iE '^(torch|transformers|sentencepiece|safetensors|accelerate|numpy|prompt)'
"$venv/bin/pytest" "$@"
