#!/usr/bin/env bash
# Proof without a GPU that the CUDA sources are what nvcc wants: kernels/cuda/cuda.cu compiles for sm_80 (A100) and sm_90
# (H100), with bf16 and fp32 storage, without a warning; no kernel spills registers or uses local memory (stack); the
# programs link with it, and the lessons of dev/learn compile for both as well.
#
#   dev/kernels/compile_proof.sh        needs nvcc (scripts/deps.sh cuda installs one); ends with "N passed, M failed"
#
# Every compilation, kernel and program counts as one. What ptxas reports about a kernel (registers, stack, spills) is
# left in build/proof/PRECISION/sm_NN.txt.
set -uo pipefail
cd "$(dirname "$0")/../.."
out=build/proof
passed=0 failed=0

nvcc=$(scripts/cuda_toolkit.sh) || {
    echo "compile_proof.sh: there is no nvcc and none could be put together" >&2
    echo "0 passed, 1 failed"
    exit 1
}
pass() { passed=$((passed + 1)); }
fail() {
    failed=$((failed + 1))
    echo "FAIL $*"
}

compile() { # PRECISION ARCHITECTURE: one object, what ptxas says into a log, and the exit status beside it
    local name=$out/$1/$2
    "$nvcc" -std=c++17 -Ikernels/cuda -O3 -arch="$2" -DPRECISION_"$1" -DWITH_CUDA -D_GNU_SOURCE -Werror all-warnings \
        -Xcompiler -Wall,-Wextra,-Werror -Xptxas -v -c kernels/cuda/cuda.cu -o "$name.o" \
        >"$name.txt" 2>&1
    echo $? >"$name.status"
}

# What ptxas -v says, as lines "KERNEL STACK STORES LOADS REGISTERS", names without their arguments.
kernels() {
    awk '/Function properties for/ { name = $NF }
         /bytes stack frame/ { stack = $1; stores = $5; loads = $9 }
         / Used [0-9]+ registers/ {
             for (i = 1; i < NF; i++) if ($i == "Used") print name, stack, stores, loads, $(i + 1)
         }' "$1" |
        c++filt -p | sed 's/ (/(/g; s/(bool)//g; s/^void //'
}

link() { # PRECISION: the programs, with the object that was just made, and the lessons
    local build=$out/$1 program programs
    read -r -a programs <<<"train_distill infer eval $(sed -n 's/^LESSONS := //p' Makefile)"
    cp "$build/sm_90.o" "$build/cuda.o"
    rm -f "${programs[@]/#/$build/}"
    make -k -j2 -Otarget --no-print-directory QUICK=1 NVCC="$nvcc" PRECISION="$1" BUILD="$build" "${programs[@]/#/$build/}" \
        >"$build/link.txt" 2>&1
    for program in "${programs[@]}"; do
        [ -x "$build/$program" ] && pass || fail "$program, $1: $(grep -A 5 "$program" "$build/link.txt" | head -10)"
    done
    # a device that no machine has, asked of a program that knows the table of GPUs
    case $("$build/infer" --device cuda:99 none.png 2>&1) in
    *cuda:99* | *NVIDIA*) pass ;;
    *) fail "infer, $1, does not say that there is no device cuda:99" ;;
    esac
}

mkdir -p "$out/BF16" "$out/FP32"
for precision in BF16 FP32; do
    for architecture in sm_80 sm_90; do compile $precision $architecture & done
    wait
    for architecture in sm_80 sm_90; do
        name=$out/$precision/$architecture
        if [ "$(cat "$name.status")" -eq 0 ]; then pass; else
            fail "kernels/cuda/cuda.cu, $precision, $architecture:"
            grep -v 'ptxas info\|bytes stack frame' "$name.txt" | head -40
            continue
        fi
        count=0
        while read -r -a field; do
            n=${#field[@]}
            kernel="${field[*]:0:n-4}" stack=${field[n-4]} stores=${field[n-3]} loads=${field[n-2]}
            count=$((count + 1))
            if [ "$stack" = 0 ] && [ "$stores" = 0 ] && [ "$loads" = 0 ]; then
                pass
            else
                fail "$kernel, $precision, $architecture: $stack bytes of stack, $stores of spill stores, $loads of" \
                    "spill loads; no kernel may use local memory"
            fi
        done < <(kernels "$name.txt")
        [ $count -gt 0 ] || fail "$name.txt tells of no kernel"
    done
    link $precision
done

echo "$passed passed, $failed failed"
[ $failed -eq 0 ]
