#!/usr/bin/env bash
# Is every barrier of the CUDA kernels needed, and would a test notice if it were missing? Leaves out each __syncthreads,
# __syncwarp and cluster_wait of kernels/cuda/*.cuh in turn, on the emulated GPU (EMULATION_SKIP, nothing is compiled again),
# and runs the tests of its family.
#
#   make CUDA=emulated build/BF16-emulated/test_kernels build/BF16-emulated/test_emulator
#   dev/kernels/mutate_barriers.sh [BUILD [FILE...]]       default: build/BF16-emulated, all of kernels/cuda/*.cuh; some minutes
#
# Prints the barriers that no test missed, and last `N passed, M failed`.
set -uo pipefail
cd "$(dirname "$0")/../.."
build=${1:-build/BF16-emulated}
shift $(($# > 0))
[ $# -gt 0 ] || set -- kernels/cuda/*.cuh
passed=0 failed=0
export OMP_WAIT_POLICY=passive

tests_of() { # FILE: which tests run its kernels
    case $(basename "$1") in
    reduce.cuh) echo norm squared_norm cosine entropy_band ;;
    input.cuh) echo embedding patchify position position_2d rows ;;
    norm.cuh) echo norm ;;
    linear.cuh | matmul.cuh | gemv.cuh) echo linear_forward linear_backward ;;
    gemv_quantised.cuh) echo quantised_linear ;;
    small_m.cuh) echo linear_forward quantised_linear ;;
    attention_decode.cuh) echo decode ;;
    attention_*.cuh) echo attention ;;
    sample.cuh) echo sample ;;
    distill_sparse.cuh) echo objective_sparse objective_sparse_whole ;;
    distill.cuh | objective.cuh) echo objective objective_wide objective_extremes entropy_band cosine ;;
    esac
}

run() { # CAPABILITY FILE
    EMULATION_CAPABILITY=$1 timeout 300 "$build/test_kernels" --quick cuda $(tests_of "$2") >/dev/null 2>&1 &&
        { [[ $2 != */reduce.cuh ]] || "$build/test_emulator" >/dev/null 2>&1; }
}

for file in "$@"; do
    [ -n "$(tests_of "$file")" ] || continue
    if ! run 80 "$file" || ! run 90 "$file"; then
        failed=$((failed + 1))
        echo "the tests of $file fail already: $build/test_kernels --quick cuda $(tests_of "$file")"
        continue
    fi
    for line in $(grep -nE '^[^*/]*(__syncthreads|__syncwarp|cluster_wait)\(.*\);' "$file" | cut -d: -f1); do
        noticed=no
        # on an older GPU and a newer one, whose kernels differ
        for capability in 80 90; do
            EMULATION_SKIP=$(basename "$file"):$line run $capability "$file" || noticed=yes
            [ $noticed = no ] || break
        done
        if [ $noticed = yes ]; then passed=$((passed + 1)); else
            failed=$((failed + 1))
            echo "no test misses $file:$line  $(sed -n "${line}p" "$file")"
        fi
    done
done
echo "$passed passed, $failed failed"
[ $failed -eq 0 ]
