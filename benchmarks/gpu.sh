#!/bin/sh
# The GPU figures on a machine without network, in less than ten minutes:
#     sh benchmarks/gpu.sh [RESULT.json]
# PYTHON=... chooses the interpreter. Wheels of what it lacks lie in benchmarks/wheels: wheels.txt.
# Each figure is written once it is measured. The exit code is 0 where all of them are.
set -eu
started=$(date +%s)
limit=560 # seconds for all of it; ten more, and it is killed
here=$(cd "$(dirname "$0")/.." && pwd)
result=${1:-$here/benchmarks/results/gpu.json}
python=${PYTHON:-python3}
site=$(mktemp -d)
trap 'rm -rf "$site"' EXIT

set --
for wheel in "$here"/benchmarks/wheels/*.whl; do
    case ${wheel##*/} in
    '*.whl') ;; # there are none
    torch-* | torchvision-* | triton-* | nvidia_* | numpy-* | [Pp]illow-*)
        echo "${wheel##*/} is left out: the machine's own is measured" >&2
        ;;
    *) set -- "$@" "$wheel" ;;
    esac
done
if [ $# -gt 0 ]; then
    "$python" -m pip --isolated install -q --no-index --no-deps --no-compile --no-cache-dir \
        --disable-pip-version-check --target "$site/packages" "$@" || {
        echo "the wheels in benchmarks/wheels do not fit $("$python" -V): wheels.txt" >&2
        exit 2
    }
fi
export PYTHONPATH="$site/packages:$here${PYTHONPATH:+:$PYTHONPATH}"
export TORCHINDUCTOR_CACHE_DIR="$site/compiled" # can be written, and knows nothing yet
unset TORCH_ALLOW_TF32_CUBLAS_OVERRIDE          # some images set it: float32 were TF32 then
"$python" "$here"/benchmarks/run.py --help >/dev/null || {
    echo "$python lacks packages: benchmarks/wheels.txt says how to bring them" >&2
    exit 2
}
df -h /dev/shm || true # through it workers hand over batches, 1.6 GB at most
nvidia-smi --query-gpu=name,memory.total,driver_version,clocks.sm --format=csv,noheader || true
timeout -k 10 $((limit - ($(date +%s) - started))) \
    "$python" "$here"/benchmarks/run.py --suite gpu --json "$result"
