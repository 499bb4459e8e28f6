#!/usr/bin/env bash
# What a CUDA machine does with the full model, by every backend that it has: builds, compares, times, writes JSON.
#
#   bash bench/gpu.sh                       on the machine with the GPU; needs torch for it, and transformers
#   bash bench/gpu.sh --wheels DIR          the same, with what is missing there taken from DIR, without a network
#   bash bench/gpu.sh --pack DIR [VERSION]  before that, where there is an index: fill DIR for Python VERSION (3.12)
#   bash bench/gpu.sh --cpu-check           small networks, no GPU: does the script work?
#
# What else is given goes to bench/gpu.py (--only, --runs, --timeout-s, --out). PYTHON names the interpreter.
set -euo pipefail
from=$PWD
cd "$(dirname "${BASH_SOURCE[0]}")/.."

# module=distribution, in the order of their need of one another; torch and transformers must be there.
needed="msgspec=msgspec filelock=filelock platformdirs=platformdirs soxr=soxr safetensors=safetensors
    PIL=pillow ml_dtypes=ml-dtypes google.protobuf=protobuf onnx=onnx onnx_ir=onnx-ir onnxscript=onnxscript
    flatbuffers=flatbuffers onnxruntime=onnxruntime"
tensorrt="tensorrt_rtx_bindings=tensorrt-rtx-cu13-bindings tensorrt_rtx_libs=tensorrt-rtx-cu13-libs
    tensorrt_rtx=tensorrt-rtx-cu13"

absolute() { case $1 in /*) echo "$1" ;; *) echo "$from/$1" ;; esac; }

python=${PYTHON:-}
case $python in */*) python=$(absolute "$python") ;; esac
if [ -z "$python" ]; then
    python=python3
    if [ -x .venv/bin/python ]; then python=.venv/bin/python; fi
fi

pack() {
    local folder=$1 version=${2:-3.12} pair
    mkdir -p "$folder"
    for pair in $needed $tensorrt; do
        case $pair in  # this one is a source archive of a few Python files
            tensorrt_rtx=*) "$python" -m pip wheel --quiet --no-deps --wheel-dir "$folder" "${pair#*=}"; continue ;;
        esac
        "$python" -m pip download --quiet --no-deps --only-binary=:all: --python-version "$version" \
            --platform manylinux_2_28_x86_64 --platform manylinux_2_17_x86_64 --platform manylinux2014_x86_64 \
            --platform linux_x86_64 --dest "$folder" "${pair#*=}"
    done
    ls -l "$folder"
    echo "NVIDIA's libraries may not be redistributed: carry $folder to your own machine only" >&2
}

missing() {
    "$python" - "$@" <<'END'
import importlib.util, sys

def lacks(module):
    try:
        return importlib.util.find_spec(module) is None
    except ModuleNotFoundError:  # of the package that it is in
        return True

pairs = [argument.split("=") for argument in sys.argv[1:]]
print(*(distribution for module, distribution in pairs if lacks(module)))
END
}

wheels=
arguments=()
while [ $# -gt 0 ]; do
    case $1 in
        --pack) shift; pack "$(absolute "$1")" "${@:2}"; exit ;;
        --wheels) wheels=$(absolute "$2"); shift 2 ;;
        --out) arguments+=("$1" "$(absolute "$2")"); shift 2 ;;
        *) arguments+=("$1"); shift ;;
    esac
done

if [ -n "$wheels" ]; then
    target=$(mktemp -d)
    trap 'rm -rf "$target"' EXIT
    # Without what they depend on, so that nothing hides the machine's own torch. TensorRT only where there is none.
    lacking=$(missing $needed)
    if [ -n "$(missing tensorrt=tensorrt)" ]; then lacking="$lacking $(missing $tensorrt)"; fi
    for name in $lacking; do
        "$python" -m pip install --quiet --no-index --no-deps --find-links "$wheels" --target "$target" "$name" ||
            echo "gpu.sh: $name is not in $wheels; going on without it" >&2
    done
    export PYTHONPATH="$target${PYTHONPATH:+:$PYTHONPATH}"
fi
lacking=$(missing torch=torch transformers=transformers $needed)
if [ -n "$lacking" ]; then
    echo "gpu.sh: error: $python lacks: $lacking; expected them; use --wheels DIR, which --pack DIR fills" >&2
    exit 1
fi
"$python" -m bench.gpu ${arguments[@]+"${arguments[@]}"}
