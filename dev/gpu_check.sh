#!/usr/bin/env bash
# Everything that only a machine with an NVIDIA GPU can tell, in one command and at most 8 minutes, without a network:
#
#   dev/gpu_check.sh [OUT]      OUT: where gpu.md and gpu.json go; default dev/bench
#
# builds (needs nvcc, python3 and what `make` needs; CPPFLAGS, LDFLAGS and NVCC from the environment are heeded), runs the
# kernel and model tests on the GPU, compute-sanitizer over the small ones, trains and distils the starter and compares
# the loss with the processor's at every step, resumes after a kill and compares the bits, times every operation and
# whole steps against their floors and, where PyTorch and Transformers are installed, beside them. A stage that fails or
# runs out of time does not stop the others. Logs are in build/gpu_check/. Ends with "N passed, M failed".
#
# TIKZ_CHECK=emulated runs the same with the emulated GPU and tiny sizes, to try this script without a GPU.
set -uo pipefail
cd "$(dirname "$0")/.."
work=build/gpu_check
deadline=$((SECONDS + 470))
passed=0 failed=0
jobs=$(nproc)
nvcc=${NVCC:-$(command -v nvcc || echo /usr/local/cuda/bin/nvcc)}

# What differs on the emulated GPU: the build, and all sizes.
cuda=1 suffix='' report=${1:-dev/bench} shapes=large student='base,lm.layers=2' batch=32 steps=30 resume=300 every=30
tests='' speed='--student small --batch 64 --steps 60' large=tl-1.1b,lm.vocab=32000 large_speed='--batch 16 --steps 8'
batches='--batch 1,8,64'
shape_7b=tl-1.1b,lm.vocab=32016,lm.width=4096,lm.layers=32,lm.heads=32,lm.kv_heads=32,lm.head_dim=128,lm.ffn=11008
if [ "${TIKZ_CHECK:-}" = emulated ]; then
    cuda=emulated suffix=-emulated report=${1:-$work} shapes=tiny student=tiny batch=2 steps=3 resume=6 every=2
    tests=--smoke speed='--student tiny --batch 2 --steps 2' large=tiny large_speed='--batch 2 --steps 2' batches='--batch 1,2'
    shape_7b=tiny
    deadline=$((SECONDS + 1500))
elif ! nvidia-smi >/dev/null 2>&1; then
    echo "gpu_check.sh: nvidia-smi finds no GPU here; TIKZ_CHECK=emulated tries the script without one" >&2
    echo "0 passed, 1 failed"
    exit 1
fi
bf16=build/BF16$suffix fp32=build/FP32$suffix
rm -rf "$work"
mkdir -p "$work"
date -u +%Y-%m-%d >"$work/date.txt"
{ nvidia-smi --query-gpu=name,memory.total,driver_version --format=csv,noheader 2>/dev/null || echo emulated GPU; } |
    head -1 >"$work/gpu.txt"
: >"$work/stages.tsv"

note() { # NAME SECONDS PASSED FAILED WHY: one line of the table of stages
    passed=$((passed + $3)) failed=$((failed + $4))
    printf '%s\t%s\t%s\t%s\t%s\n' "$@" >>"$work/stages.tsv"
    printf '%-34s %4s s  %6s passed %4s failed  %s\n' "$@"
}

skip() { note "$1" 0 0 0 "skipped: $2"; }

stage() { # NAME LIMIT COMMAND: counts what its last line says, or one
    local name=$1 limit=$2 log=$work/${1// /-}.log start=$SECONDS status last why=''
    [ "${TIKZ_CHECK:-}" = emulated ] && limit=$((limit * 10))
    [ $((deadline - SECONDS)) -lt "$limit" ] && limit=$((deadline - SECONDS))
    if [ "$limit" -lt 3 ]; then
        note "$name" 0 0 1 "no time left"
        return 1
    fi
    timeout -k 5 "$limit" bash -c "$3" >"$log" 2>&1
    status=$?
    last=$(tail -n 1 "$log")
    local good=0 bad=1
    if [[ $last =~ ^([0-9]+)\ passed,\ ([0-9]+)\ failed ]]; then
        good=${BASH_REMATCH[1]} bad=${BASH_REMATCH[2]}
        [ $status -ne 0 ] && [ "$bad" -eq 0 ] && bad=1
    elif [ $status -eq 0 ]; then
        good=1 bad=0
    fi
    [ $status -eq 124 ] && why="stopped after $limit s"
    [ -z "$why" ] && [ "$bad" -gt 0 ] && why="see $log"
    note "$name" $((SECONDS - start)) "$good" "$bad" "$why"
    [ "$bad" -gt 0 ] && tail -n 5 "$log" | sed 's/^/    /'
    [ "$bad" -eq 0 ]
}

has() { python3 -c "import $1" 2>/dev/null; }

# ---- build ----
settings="CUDA=$cuda"
[ "$cuda" = 1 ] && settings="$settings NVCC=$nvcc CUDA_ARCHITECTURES=native"
stage 'build' 170 "
    make -j$jobs $settings PRECISION=FP32 $fp32/train_distill $fp32/test_kernels $fp32/test_model &
    fp32=\$!
    make -j$jobs $settings $bf16/{train_distill,infer,eval,test_kernels,test_model,bench_kernels,bench_decode}
    bf16=\$?
    wait \$fp32 && exit \$bf16"
$bf16/bench_decode --make $work/large.safetensors $large >"$work/make-large.log" 2>&1 & # needs the processor only
making=$!

# ---- right? ----
stage 'kernels bf16' 60 "$bf16/test_kernels $tests cuda"
stage 'kernels fp32' 60 "$fp32/test_kernels $tests cuda"
if [ "$cuda" = 1 ]; then
    stage 'models bf16' 40 "$bf16/test_model test/fixtures cuda"
    stage 'models fp32' 40 "$fp32/test_model test/fixtures cuda"
else
    skip 'models' 'minutes on an emulated GPU; test_model test/fixtures cuda runs them'
fi
if command -v compute-sanitizer >/dev/null; then
    for tool in memcheck racecheck; do
        stage "$tool" 60 "compute-sanitizer --tool $tool --error-exitcode 9 $bf16/test_kernels --smoke cuda |
            grep -v '^=========  *Host Frame'; exit \${PIPESTATUS[0]}"
    done
else
    skip 'compute-sanitizer' 'not installed'
fi

train() { # BUILD DEVICE FOLDER MORE...: a command that trains the starter's student
    echo "$1/train_distill --device $2 --out $work/$3 --student $student --batch $batch --steps $steps" \
        "--eval-every $steps --eval-batches 2 ${*:4}"
}
compare() { echo "python3 dev/compare_curves.py $work/$1/log.jsonl $work/$2/log.jsonl"; }
for precision in fp32 bf16; do
    build=${!precision}
    tolerance=$([ $precision = fp32 ] && echo 1e-4 || echo 2e-2)
    stage "train $precision" 60 "$(train "$build" cuda "alone-$precision" --teacher none) &&
        $(train "$build" cpu "alone-$precision-cpu" --teacher none) &&
        $(compare "alone-$precision" "alone-$precision-cpu") --tolerance $tolerance"
    stage "distil $precision" 60 "$(train "$build" cuda "distil-$precision") &&
        $(train "$build" cpu "distil-$precision-cpu") &&
        $(compare "distil-$precision" "distil-$precision-cpu") --tolerance $tolerance"
done
stage 'the same bits twice' 30 "$(train $bf16 cuda distil-again) && $(compare distil-bf16 distil-again) --bits &&
    cmp $work/distil-bf16/student.safetensors $work/distil-again/student.safetensors && echo 1 passed, 0 failed"

long="--student $student --batch $batch --steps $resume --eval-every $every --eval-batches 1"
stage 'resume' 60 "
    $bf16/train_distill --device cuda --out $work/whole $long &&
    { $bf16/train_distill --device cuda --out $work/killed $long & } && run=\$! &&
    until [ -e $work/killed/state.safetensors ]; do sleep 0.02; done
    kill -9 \$run
    wait \$run
    wc -l $work/killed/log.jsonl
    $bf16/train_distill --resume --out $work/killed && $(compare whole killed) --bits &&
    cmp $work/whole/student.safetensors $work/killed/student.safetensors"

# ---- fast? ----
stage 'bench of every operation' 70 "$bf16/bench_kernels --device cuda --shapes $shapes --json $work/kernels.json"
stage 'distilling speed' 30 "$bf16/train_distill --device cuda --out $work/distil-starter --student $student \
    --batch $batch --steps $((2 * steps)) --val-data none"
if has numpy && has PIL; then
    stage 'training data' 30 "python3 dev/bench/train_torch.py --make-data $work/bench.bin"
else
    skip 'training data' 'needs NumPy and Pillow; trains on the starter instead'
fi
data=$([ -e $work/bench.bin ] && echo $work/bench.bin || echo dev/starter/train.bin)
stage 'training speed, small' 30 "$bf16/train_distill --device cuda --out $work/train-small --teacher none --data $data \
    --val-data none $speed"
if [ "$cuda" = 1 ] && has torch && [ -e $work/bench.bin ]; then
    peer="python3 dev/bench/train_torch.py --data $work/bench.bin --device cuda --steps 60"
    stage 'training speed, PyTorch' 30 "$peer --json $work/train-peer.json"
    stage 'training speed, compiled' 60 "$peer --compile --json $work/train-peer-compiled.json"
else
    skip 'training speed, PyTorch' 'no GPU, PyTorch or Pillow'
fi
if wait $making; then
    stage 'decoding speed, 1.1b' 40 "$bf16/bench_decode --device cuda --json $work/decode-1.1b.json $batches \
        $work/large.safetensors"
    stage 'decoding speed, 7b' 40 "$bf16/bench_decode --device cuda --json $work/decode-7b.json $batches $shape_7b"
    stage 'training speed, large' 60 "$bf16/train_distill --device cuda --out $work/train-large --teacher none \
        --init none --student $work/large.safetensors --data $data --val-data none $large_speed"
else
    note 'the large model' 0 0 1 "see $work/make-large.log"
fi
rm -f $work/large.safetensors $work/train-large/*.safetensors
if has torch && has transformers; then
    for shape in 1.1b 7b; do
        stage "decoding speed, Transformers, $shape" 70 "python3 dev/bench/peers.py --decode --shape $shape --seconds 40 \
            --out $work/decode-$shape-peer.json"
    done
else
    skip 'decoding speed, Transformers' 'not installed'
fi
if has torch && [ -e $work/kernels.json ]; then
    left=$((deadline - SECONDS - 10))
    stage 'every operation, PyTorch' $((left < 110 ? left : 110)) "python3 dev/bench/peers.py \
        --kernels $work/kernels.json --out $work/peers.json --seconds $((left < 110 ? left - 10 : 100))"
else
    skip 'every operation, PyTorch' 'not installed'
fi

python3 dev/bench/gpu_report.py $work "$report" || failed=$((failed + 1))
echo "$passed passed, $failed failed"
[ $failed -eq 0 ]
