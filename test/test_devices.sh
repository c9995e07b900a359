#!/bin/bash
# The programs on a second device, against the CPU: training, distilling and decoding must come out the same, on one GPU
# and on two, in one process and in several. Written for the emulated GPU (`make CUDA=emulated`), whose number and memory
# are set from outside.
#
#   test/test_devices.sh build/FP32-emulated        the folder with the programs, built with PRECISION=FP32
#
# Prints a check only when it fails, and at the end "N passed, M failed".

. "$(dirname "$0")/check.sh"
. "$(dirname "$0")/mpi.sh"
programs=$(cd "${1:-build/FP32-emulated}" && pwd) || exit 1
cd "$root" || exit 1
begin_test devices
TIME_LIMIT=300

# train NAME OPTIONS...: a short distillation into $tmp/NAME with every term of the objective, by `ranks` processes
ranks=1
train() {
    local name=$1 launcher=()
    shift
    [ $ranks = 1 ] || launcher=("${mpirun[@]}" -n $ranks)
    run "${launcher[@]}" "$programs/train_distill" --teacher "$tmp/teacher/student.safetensors" --init none --batch 2 \
        --accum 2 --student tiny,vision.image_size=48,lm.kv_heads=1 --max-tokens 32 --val-data none --w-embed 0.1 \
        --w-layer 0.05 --layer-loss mse --w-hard 0.1 --alpha 0.5 --entropy-low 2.5 --entropy-high 6.16 --warmup 0 --lr-schedule constant \
        --kd-schedule none --out "$tmp/$name" "$@"
    return $status
}

# Two runs logged the same numbers but for 1e-5 of each.
agree() { # A B
    paste -d '\n' <(numbers "$tmp/$1") <(numbers "$tmp/$2") | tr -c '0-9.eE+\n-' ' ' | awk '
        NR % 2 { for (i = 1; i <= NF; i++) first[i] = $i; n = NF; next }
        { if (NF != n || n < 10) exit bad = 1
          for (i = 1; i <= NF; i++) { d = $i - first[i]; if (d * d > 1e-10 * $i * $i + 1e-16) exit bad = 1 } }
        END { exit bad || NR < 10 }'
}

same_run() { same "$tmp/$1/student.safetensors" "$tmp/$2/student.safetensors" && same_log "$tmp/$1" "$tmp/$2"; }

# ---- training ----

# A teacher of other sizes. Steps enough that every pass is made, recorded and then replayed (replay in kernels/ops.h).
succeeds "$programs/train_distill" --device cpu --teacher none \
    --student tiny,vision.image_size=48,vision.layers=1,lm.layers=1,lm.width=96,lm.heads=3 --steps 30 --batch 8 --lr 0.005 \
    --max-tokens 32 --val-data none --out "$tmp/teacher"
train cpu --device cpu --steps 5
check "distils on the CPU" [ -s "$tmp/cpu/log.jsonl" ]
check "some positions are left out of the distillation" grep -q '"gate":0\.[0-9]*' "$tmp/cpu/log.jsonl"
train gpu --device cuda --steps 5
check "distils on the GPU to the CPU's numbers" agree cpu gpu
EMULATION_SEED=9 train again --device cuda:0 --steps 5
check "the same bits whatever the order of the GPU's threads" same_run gpu again
EMULATION_DEVICES=2 train apart --student-device cuda:1 --teacher-device cuda:0 --steps 5
check "the same bits with the teacher on another GPU" same_run gpu apart
train mixed --student-device cpu --teacher-device cuda --steps 5
check "the CPU's numbers with the teacher on the GPU" agree cpu mixed
# Own samples, new ones, ones that are kept, and the data's programs: with this seed 1 1 0 1 0, the fourth a kept batch.
own=(--steps 5 --on-policy 0.7 --on-policy-tokens 4 --replay 2 --seed 2)
train own_cpu --device cpu "${own[@]}"
train own --device cuda "${own[@]}"
check "learns from the student's own samples as on the CPU" agree own_cpu own
check "both new and kept ones" [ "$(grep -o '"replayed":1' "$tmp/own/log.jsonl" | wc -l)$(grep -o '"cut":4' "$tmp/own/log.jsonl" | wc -l)" = 12 ]
EMULATION_DEVICES=2 train own_apart --student-device cuda:1 --teacher-device cuda:0 "${own[@]}"
check "own samples with the teacher on another GPU: the same bits" same_run own own_apart
# A step ahead, by a copy of the student on the teacher's GPU or by itself, with weights that change much from step to step.
ahead=(--steps 3 --on-policy 1 --on-policy-tokens 4 --on-policy-ahead --lr 0.02)
train ahead --device cuda "${ahead[@]}"
EMULATION_DEVICES=2 train ahead_apart --student-device cuda:1 --teacher-device cuda:0 "${ahead[@]}"
check "a step ahead on the teacher's GPU" grep -q "drawn a step ahead on the teacher's GPU" "$tmp/err"
check "samples drawn a step ahead on the teacher's GPU: the same bits" same_run ahead ahead_apart
EMULATION_DEVICES=2 train ahead_resumed --student-device cuda:1 --teacher-device cuda:0 "${ahead[@]}" --steps 2 &&
    EMULATION_DEVICES=2 train ahead_resumed --resume --steps 3
check "resumed, the same bits" same_run ahead ahead_resumed
train resumed --device cuda --steps 2 && train resumed --resume --steps 5
check "resumed on the GPU, the same bits" same_run gpu resumed

# ---- several processes ----

engine_is() { grep -q "^2 processes, gradients summed through $1, each with a part" "$tmp/err"; }

if have_mpi "$programs/train_distill"; then
    export OMP_NUM_THREADS=1
    ranks=2
    EMULATION_DEVICES=2 train two --device cuda --batch 1 --steps 5
    check "two processes with a GPU each: through NCCL" engine_is NCCL
    check "two processes with a GPU each: the numbers of one" agree gpu two
    EMULATION_DEVICES=2 train whole --device cuda --batch 1 --steps 5 --no-shard
    check "two processes with a GPU each, sharded or not: the same bits" same_run two whole
    EMULATION_DEVICES=4 train pairs --batch 1 --steps 5
    check "two processes with two GPUs each: through NCCL" engine_is NCCL
    check "two processes with two GPUs each: the teachers on GPUs of their own" grep -q '^teacher .* on .*cuda:0' "$tmp/err"
    check "two processes with two GPUs each: the same bits" same_run two pairs
    train shared --device cuda --batch 1 --steps 5
    check "two processes on one GPU: through MPI" engine_is MPI
    check "two processes on one GPU: the numbers of one" agree gpu shared
    EMULATION_DEVICES=2 train continued --device cuda --batch 1 --steps 2 &&
        EMULATION_DEVICES=2 train continued --resume --batch 1 --steps 5
    check "two processes with a GPU each, resumed: the same bits" same_run two continued
    ranks=1
    unset OMP_NUM_THREADS
fi

# ---- decoding ----

for device in cpu cuda; do
    run "$programs/infer" --device $device -q dev/starter/example.png
    cp "$tmp/out" "$tmp/text.$device"
done
check "writes a program" [ -s "$tmp/text.cpu" ]
check "the GPU writes what the CPU writes" same "$tmp/text.cpu" "$tmp/text.cuda"

# The images' texts are the same on every device and in every batch, also when they are sampled.
together() { # NAME OPTIONS...
    local name=$1
    shift
    run "$programs/infer" -q --max-tokens 14 --temperature 1.5 --top-p 0.95 --top-k 40 --seed 4 "$@" \
        dev/starter/example.png dev/starter/example-rendered.png test/fixtures/images/cmyk.jpg
    cp "$tmp/out" "$tmp/sampled.$name"
}
together alone --device cpu --batch 1
together cpu --device cpu
together cuda --device cuda --batch 2
check "samples" [ "$(grep -c '^% ' "$tmp/sampled.alone")" -gt 2 ]
check "texts written together are those written alone" same "$tmp/sampled.alone" "$tmp/sampled.cpu"
check "the GPU draws what the CPU draws" same "$tmp/sampled.alone" "$tmp/sampled.cuda"

# ---- what goes wrong ----

image=dev/starter/example.png
refuses 2 "there is no device cuda:3; this machine has 1 GPU" "$programs/infer" --device cuda:3 $image
refuses 2 "there is no device 'gpu'; expected auto, cpu, cuda or cuda:N" "$programs/infer" --device gpu $image
EMULATION_DEVICES=0 refuses 2 "no NVIDIA GPU" "$programs/infer" --device cuda $image
EMULATION_DRIVER=11040 refuses 2 "the NVIDIA driver knows CUDA 11.4 but this program was built with CUDA 12.0" \
    "$programs/infer" --device cuda $image
EMULATION_LOST=0 refuses 1 "the GPU stopped: uncorrectable ECC error" "$programs/infer" --device cuda $image
EMULATION_LOST=600 train lost --device cuda --steps 3
check "a GPU that is lost while it trains ends the run" [ $? = 1 ]
check "with one sentence" grep -q "error: the GPU stopped: uncorrectable ECC error" <(tail -n 1 "$tmp/err")
EMULATION_DEVICES=0 run "$programs/infer" --device auto -q $image
check "auto takes the CPU where no GPU answers" same "$tmp/text.cpu" "$tmp/out"
EMULATION_MEMORY=90000000 refuses 1 "for the teacher's activations; it holds the teacher's parameters" \
    "$programs/train_distill" --device cuda --val-data none --out "$tmp/large"
EMULATION_MEMORY=11200000 refuses 1 "memory is full" "$programs/train_distill" --device cuda --val-data none \
    --out "$tmp/large"
check "a run that did not fit leaves no student" [ ! -e "$tmp/large/student.safetensors" ]

# reloads MEMORY MODEL PART: a server on a GPU with so many bytes loads its model again, from a file that is now MODEL; what it says
# has PART, and it goes on.
reloads() {
    local process
    cp dev/starter/student.safetensors "$tmp/served.safetensors"
    last=(serve --device cuda "$1 bytes" "$2")
    EMULATION_MEMORY=$1 "$programs/serve" --device cuda --port 0 --model "m=$tmp/served.safetensors" 2>"$tmp/err" &
    process=$!
    wait_for $process grep -q listening "$tmp/err"
    cp "$2" "$tmp/next" && mv "$tmp/next" "$tmp/served.safetensors"
    kill -HUP $process
    wait_for $process grep -q "$3" "$tmp/err"
    check "loads the model again: $3" grep -q "$3" "$tmp/err"
    kill -TERM $process
    wait $process
    check "and serves on" [ $? = 0 ]
}
if [ -x "$programs/serve" ]; then
    reloads 40000000 dev/starter/student.safetensors "loaded m again"
    reloads 12000000 dev/starter/student.safetensors "the model m stays as it was: cannot allocate 7.6 MB on device cuda:0 for parameters"
    run "$programs/train_distill" --device cpu --teacher none --student tiny,lm.max_positions=131072 --steps 1 --batch 2 --max-tokens 16 \
        --val-data none --out "$tmp/long"
    reloads 40000000 "$tmp/long/student.safetensors" "the model m stays as it was: 1 program of up to 13.* tokens .* the GPU has free"
else
    echo "not tested here: a server on a GPU; there is no serve"
fi

end_test
