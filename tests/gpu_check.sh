#!/bin/sh
# Does this code run on your GPU, and how fast? At most 8 minutes on a machine with 16 cores and a GPU:
#
#   pip install -r requirements.txt 'tensorflow[and-cuda]==2.21.0'
#   sh tests/gpu_check.sh
#
# Writes gpu_check.json and prints a table. Without a GPU it proves itself at a small size, and says so. PYTHON names another
# python.
exec "${PYTHON:-python}" "$(dirname "$0")/gpu_check.py" "$@"
