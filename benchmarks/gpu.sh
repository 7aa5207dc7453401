#!/bin/sh
# The GPU figures on a machine without network, in less than ten minutes:
#     sh benchmarks/gpu.sh [RESULT.json]
# PYTHON=... chooses the interpreter. Wheels of what it lacks lie in benchmarks/wheels, fetched on a
# machine of the same kind with a network:
#     pip download --no-deps -d benchmarks/wheels fastreid==1.4.0 timm yacs termcolor ...
set -eu
cd "$(dirname "$0")/.."
result=${1:-benchmarks/results/gpu.json}
python=${PYTHON:-python3}
here=$PWD
if ls benchmarks/wheels/*.whl >/dev/null 2>&1; then
    site=$(mktemp -d)
    trap 'rm -rf "$site"' EXIT
    "$python" -m pip install -q --no-index --no-deps --no-compile --target "$site" \
        benchmarks/wheels/*.whl
    export PYTHONPATH="$site:$here${PYTHONPATH:+:$PYTHONPATH}"
else
    export PYTHONPATH="$here${PYTHONPATH:+:$PYTHONPATH}"
fi
nvidia-smi --query-gpu=name,memory.total,clocks.sm --format=csv,noheader
timeout 590 "$python" benchmarks/run.py --suite gpu --json "$result"
