#!/bin/sh
# The GPU figures on a machine without network, in less than ten minutes:
#     sh benchmarks/gpu.sh [RESULT.json]
# PYTHON=... chooses the interpreter. Wheels of what it lacks lie in benchmarks/wheels: wheels.txt.
# Each figure is written once it is measured. The exit code is 0 where all of them are.
set -eu
here=$(cd "$(dirname "$0")/.." && pwd)
result=${1:-$here/benchmarks/results/gpu.json}
python=${PYTHON:-python3}
if ls "$here"/benchmarks/wheels/*.whl >/dev/null 2>&1; then
    site=$(mktemp -d)
    trap 'rm -rf "$site"' EXIT
    "$python" -m pip install -q --no-index --no-deps --no-compile --target "$site" \
        "$here"/benchmarks/wheels/*.whl
    export PYTHONPATH="$site:$here${PYTHONPATH:+:$PYTHONPATH}"
else
    export PYTHONPATH="$here${PYTHONPATH:+:$PYTHONPATH}"
fi
"$python" -c "import torch, fastreid, timm" || {
    echo "$python lacks packages: benchmarks/wheels.txt says how to bring them" >&2
    exit 2
}
nvidia-smi --query-gpu=name,memory.total,clocks.sm --format=csv,noheader || true
timeout -k 10 560 "$python" "$here"/benchmarks/run.py --suite gpu --json "$result"
