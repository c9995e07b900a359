#!/usr/bin/env bash
# Installs a CUDA compiler on machines without one: the parts of CUDA 13.0 that are needed to compile and link the
# programs, from NVIDIA's wheels on PyPI (about 500 MB). Used by dev/kernels/compile_proof.sh; needs no GPU and no driver.
#
#   scripts/cuda_toolkit.sh [DIR]       default build/cuda; prints the path of nvcc
#
# If there is an nvcc already ($NVCC, on the PATH, in /usr/local/cuda, or in DIR), it only prints its path.
set -euo pipefail
cd "$(dirname "$0")/.."
dir=${1:-build/cuda}

for found in "${NVCC:-}" "$(command -v nvcc || true)" /usr/local/cuda/bin/nvcc "$dir/bin/nvcc"; do
    if [ -n "$found" ] && "$found" --version >/dev/null 2>&1; then
        echo "$found"
        exit 0
    fi
done

# All of one release: compiler driver and ptxas, their headers, the optimiser, runtime, C++ core headers, cuBLASLt.
wheels=(
    nvidia-cuda-nvcc==13.0.88
    nvidia-cuda-crt==13.0.88
    nvidia-nvvm==13.0.88
    nvidia-cuda-runtime==13.0.96
    nvidia-cuda-cccl==13.0.85
    nvidia-cublas==13.1.0.3
)
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python=python3
if ! python3 -m pip --version >/dev/null 2>&1; then
    python3 -m venv "$work/venv" || {
        echo "cuda_toolkit.sh: python3 has neither pip nor venv; scripts/deps.sh python installs them" >&2
        exit 1
    }
    python=$work/venv/bin/python3
fi
echo "cuda_toolkit.sh: putting ${wheels[*]} into $dir" >&2
"$python" -m pip install -q --root-user-action=ignore --no-deps --no-compile --only-binary=:all: \
    --target "$work/wheels" "${wheels[@]}" >&2

tree=$work/wheels/nvidia/cu13
[ -x "$tree/bin/nvcc" ] || {
    echo "cuda_toolkit.sh: the wheel nvidia-cuda-nvcc holds no bin/nvcc; found: $(ls "$work/wheels")" >&2
    exit 1
}
ln -s lib "$tree/lib64"
for library in "$tree"/lib/lib*.so.*; do # the linker looks for names without a version
    ln -sf "$(basename "$library")" "${library%.so.*}.so"
done
mkdir -p "$(dirname "$dir")"
rm -rf "$dir"
mv "$tree" "$dir"
"$dir/bin/nvcc" --version >&2
echo "$dir/bin/nvcc"
