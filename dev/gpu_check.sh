#!/usr/bin/env bash
# Everything that only a machine with an NVIDIA GPU can tell, in one command and at most 8 minutes, without a network:
#
#   dev/gpu_check.sh [OUT]      OUT: where gpu.md and gpu.json go; default dev/bench
#
# builds (needs nvcc, python3 and what `make` needs; CPPFLAGS, LDFLAGS and NVCC from the environment are heeded), runs the
# kernel and model tests on the GPU, compute-sanitizer over the small ones, trains and distils the starter and compares
# the loss with the processor's at every step, resumes after a kill and compares the bits, does the same on two GPUs where
# there are two, times every operation, the lessons of dev/learn (whose plots it leaves there) and whole steps against
# their floors and, where PyTorch, Transformers and Liger's kernels are installed, beside them. A stage that fails or runs
# out of time does not stop the others. Logs are in build/gpu_check/. Needs 20 GB there. Ends with "N passed, M failed".
#
# TIKZ_CHECK=emulated runs the same with the emulated GPU and tiny sizes, to try this script without a GPU.
set -uo pipefail
cd "$(dirname "$0")/.."
work=build/gpu_check
deadline=$((SECONDS + 470))
jobs=$(nproc)
nvcc=${NVCC:-$(command -v nvcc || echo /usr/local/cuda/bin/nvcc)}
PATH=$PATH:$(dirname "$nvcc") # compute-sanitizer lies beside it

# What differs on the emulated GPU: the build, and all sizes.
cuda=1 suffix='' report=${1:-dev/bench} shapes=large student='base,lm.layers=2' batch=32 steps=30 resume=300 every=30
tests='' speed='--student small --batch 64 --steps 60' large=tl-1.1b,lm.vocab=32000 large_batch=8 large_steps=10
batches='--batch 1,8,64' plots=dev/learn tiny=''
lessons=$(sed -n 's/^LESSONS := //p' Makefile)
shape_7b=tl-1.1b,lm.vocab=32016,lm.width=4096,lm.layers=32,lm.heads=32,lm.kv_heads=32,lm.head_dim=128,lm.ffn=11008
if [ "${TIKZ_CHECK:-}" = emulated ]; then
    cuda=emulated suffix=-emulated report=${1:-$work} shapes=tiny student=tiny batch=2 steps=3 resume=6 every=2
    tests=--smoke speed='--student tiny --batch 2 --steps 2' large=tiny large_batch=2 large_steps=3 batches='--batch 1'
    shape_7b=tiny,lm.layers=3 plots=$work tiny=--tiny
    deadline=$((SECONDS + 1500))
elif ! nvidia-smi >/dev/null 2>&1; then
    echo "gpu_check.sh: nvidia-smi finds no GPU here; TIKZ_CHECK=emulated tries the script without one" >&2
    echo "0 passed, 1 failed"
    exit 1
elif [ ! -e "$(dirname "$(realpath "$nvcc")")/../include/cublasLt.h" ]; then
    echo "gpu_check.sh: there is no include/cublasLt.h beside $nvcc, which the CUDA build needs; name a whole toolkit's nvcc" \
        "with NVCC (scripts/deps.sh cuda makes one in build/cuda)" >&2
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
    make -j$jobs $settings PRECISION=FP32 $fp32/{train_distill,test_kernels,test_model,test_comm} &
    fp32=\$!
    make -j$jobs $settings $bf16/{train_distill,infer,eval,test_kernels,test_model,bench_kernels,bench_decode} \
        $(printf "$bf16/%s " $lessons)
    bf16=\$?
    wait \$fp32 && exit \$bf16"
# needs the processor only
{
    $bf16/bench_decode --make $work/large.safetensors $large &&
        $bf16/bench_decode --make $work/teacher.safetensors $shape_7b
} >"$work/make-large.log" 2>&1 &
making=$!

# ---- right? ----
# nothing is timed here: what does not need the other stages' results runs beside them
{
    stage 'kernels bf16' 60 "$bf16/test_kernels $tests cuda"
    stage 'kernels fp32' 60 "$fp32/test_kernels $tests cuda"
    if [ "$cuda" = 1 ]; then
        stage 'models bf16' 40 "$bf16/test_model test/fixtures cuda"
        stage 'models fp32' 40 "$fp32/test_model test/fixtures cuda"
    else
        skip 'models' 'minutes on an emulated GPU; test_model test/fixtures cuda runs them'
    fi
} &
right=$!
sanitized=
if command -v compute-sanitizer >/dev/null; then
    for tool in memcheck racecheck; do
        stage "$tool" 90 "compute-sanitizer --tool $tool --error-exitcode 9 $bf16/test_kernels --smoke cuda |
            grep -v '^=========  *Host Frame'; exit \${PIPESTATUS[0]}" &
        sanitized="$sanitized $!"
    done
else
    skip 'compute-sanitizer' 'not installed'
fi

train() { # BUILD DEVICE FOLDER MORE...: a command that trains the starter's student
    echo "$1/train_distill --device $2 --out $work/$3 --student $student --batch $batch --steps $steps" \
        "--eval-every $steps --eval-batches 2 ${*:4}"
}
compare() { echo "python3 dev/bench/compare_curves.py $work/$1/log.jsonl $work/$2/log.jsonl"; }
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
    until [ -e $work/killed/state.safetensors ] || ! kill -0 \$run 2>/dev/null; do sleep 0.02; done
    kill -9 \$run
    wait \$run
    wc -l $work/killed/log.jsonl
    $bf16/train_distill --resume --out $work/killed && $(compare whole killed) --bits &&
    cmp $work/whole/student.safetensors $work/killed/student.safetensors"

# ---- two GPUs ----
gpus=$(nvidia-smi -L 2>/dev/null | wc -l)
if [ "$cuda" = emulated ]; then
    export EMULATION_DEVICES=2
    gpus=2
fi
mpirun="mpirun --allow-run-as-root --oversubscribe --bind-to none"
if [ "$gpus" -ge 2 ] && ! command -v mpirun >/dev/null; then
    skip 'two GPUs' 'no mpirun here (scripts/deps.sh mpi)'
elif [ "$gpus" -ge 2 ]; then
    stage 'two GPUs, collectives' 40 "$mpirun -n 2 $fp32/test_comm --device cuda:rank"
    stage 'two GPUs, two processes' 60 "
        $mpirun -n 2 $(train "$fp32" cuda two-students --batch $((batch / 2)) --eval-batches 4) &&
        $(compare distil-fp32 two-students) --tolerance 1e-4"
    stage 'two GPUs, teacher and student' 60 "
        $(train "$fp32" auto two-apart) && $(compare distil-fp32 two-apart) --tolerance 1e-4"
else
    skip 'two GPUs' "$gpus GPU here"
fi
[ "$cuda" = emulated ] && unset EMULATION_DEVICES
wait $right $sanitized

# ---- fast? ----
stage 'bench of every operation' 90 "$bf16/bench_kernels --device cuda --shapes $shapes --json $work/kernels.json"
for lesson in $lessons; do
    stage "lesson, $lesson" 30 "$bf16/$lesson --json $work/lesson-$lesson.json"
    if [ "$cuda" = 1 ]; then
        stage "plot, $lesson" 10 "python3 dev/learn/plot.py $work/lesson-$lesson.json $plots/$lesson.svg"
    else
        skip "plot, $lesson" 'nothing is timed on an emulated GPU'
    fi
done
stage 'distilling speed' 30 "$bf16/train_distill --device cuda --out $work/distil-starter --student $student \
    --batch $batch --steps $((2 * steps)) --val-data none"
if has numpy && has PIL; then
    stage 'training data' 30 "python3 dev/bench/train_torch.py --make-data $work/bench.bin &&
        python3 dev/bench/peer_step.py --make-data $work/long.bin"
else
    skip 'training data' 'needs NumPy and Pillow; trains on the starter instead'
fi
data=$([ -e $work/bench.bin ] && echo $work/bench.bin || echo dev/starter/train.bin)
long_data=$([ -e $work/long.bin ] && [ "$cuda" = 1 ] && echo $work/long.bin || echo dev/starter/train.bin)
stage 'training speed, small' 30 "$bf16/train_distill --device cuda --out $work/train-small --teacher none --data $data \
    --val-data none $speed"
# A run that is ended when its log has as many lines: nobody needs the 16 GB that it would save.
ended() { # FOLDER LINES COMMAND
    cat <<END
$3 & run=\$!
lines() { { wc -l <$work/$1/log.jsonl; } 2>/dev/null || echo 0; }
while kill -0 \$run 2>/dev/null && [ "\$(lines)" -lt $2 ]; do sleep 0.1; done
kill -9 \$run 2>/dev/null
wait \$run 2>/dev/null
tail -n 3 $work/$1/log.jsonl
[ "\$(lines)" -ge $2 ]
END
}
if wait $making; then
    first="$bf16/infer --model $work/large.safetensors --device cuda --max-tokens 1 dev/starter/example.png"
    stage 'first token, 1.1b' 40 "$first && start=\$(date +%s%N) && $first &&
        echo '{\"start_to_first_token_s\":'\$(((\$(date +%s%N) - start) / 1000000))e-3'}' >$work/first.json"
    stage 'decoding speed, 1.1b' 40 "$bf16/bench_decode --device cuda --json $work/decode-1.1b.json $batches \
        $work/large.safetensors"
    stage 'decoding speed, 7b' 40 "$bf16/bench_decode --device cuda --json $work/decode-7b.json $batches $shape_7b"
    stage 'distilling speed, 1.1b from 7b' 80 "$(ended distil-large $large_steps "$bf16/train_distill --device cuda \
        --out $work/distil-large --teacher $work/teacher.safetensors --student $work/large.safetensors \
        --train connector,lm --data $long_data --val-data none --temperature 2 --kd-schedule none --alpha 0.5 \
        --batch $large_batch --steps $((2 * large_steps)) --eval-every $((2 * large_steps))")"
else
    note 'the large models' 0 0 1 "see $work/make-large.log"
fi
rm -f $work/large.safetensors $work/teacher.safetensors $work/*/*.safetensors

# ---- the peers, those first that say most ----
if [ -z "$tiny" ] && has torch && has transformers; then
    stage 'distilling speed, PyTorch' 70 "python3 dev/bench/peer_step.py --out $work/distil-large-peer.json \
        --batch $large_batch --seconds 55"
else
    skip 'distilling speed, PyTorch' 'no GPU, PyTorch or Transformers'
fi
if has torch && [ -e $work/kernels.json ]; then
    stage 'every operation, PyTorch' 70 "python3 dev/bench/peers.py --kernels $work/kernels.json --out $work/peers.json \
        --seconds 60"
else
    skip 'every operation, PyTorch' 'not installed'
fi
if has torch && has transformers; then
    for shape in 1.1b 7b; do
        stage "decoding speed, Transformers, $shape" 60 "python3 dev/bench/peers.py --decode --shape $shape --seconds 30 \
            --out $work/decode-$shape-peer.json"
    done
else
    skip 'decoding speed, Transformers' 'not installed'
fi
if [ "$cuda" = 1 ] && has torch && [ -e $work/bench.bin ]; then
    peer="python3 dev/bench/train_torch.py --data $work/bench.bin --device cuda --steps 60"
    stage 'training speed, PyTorch' 30 "$peer --json $work/train-peer.json"
    stage 'training speed, compiled' 60 "$peer --compile --json $work/train-peer-compiled.json"
else
    skip 'training speed, PyTorch' 'no GPU, PyTorch or Pillow'
fi

python3 dev/bench/gpu_report.py $work "$report" || note 'report' 0 0 1 'gpu_report.py failed'
read -r passed failed < <(awk -F'\t' '{ p += $3; f += $4 } END { print p + 0, f + 0 }' $work/stages.tsv)
echo "$passed passed, $failed failed"
[ "$failed" -eq 0 ]
