#!/bin/bash
# The programs on a second device, against the CPU: training, distilling and decoding must come out the same, on one GPU
# and on two, in one process and in several. Written for the emulated GPU (`make CUDA=emulated`), whose number and memory
# are set from outside.
#
#   test/test_devices.sh build/FP32-emulated        the folder with the programs, built with PRECISION=FP32
#
# Prints a check only when it fails, and at the end "N passed, M failed".

programs=$(cd "${1:-build/FP32-emulated}" && pwd) || exit 1
cd "$(dirname "$0")/.." || exit 1
tmp=$(mktemp -d "${TMPDIR:-/tmp}/tikz-devices-XXXXXX") || exit 1
trap 'rm -rf "$tmp"' EXIT
export OMP_WAIT_POLICY=passive LC_ALL=C
passed=0 failed=0

check() { # WHAT CONDITION...
    local what=$1
    shift
    if "$@"; then
        passed=$((passed + 1))
    else
        failed=$((failed + 1))
        echo "failed: $what; the last messages: $(head -c 600 "$tmp/err")"
    fi
}

# train NAME OPTIONS...: a short distillation into $tmp/NAME with every term of the objective
train() {
    local name=$1
    shift
    timeout 300 "$programs/train_distill" --teacher "$tmp/teacher/student.safetensors" --init none --batch 2 --accum 2 \
        --student tiny,vision.image_size=48,lm.kv_heads=1 --max-tokens 32 --val-data none --w-embed 0.1 --w-hard 0.1 \
        --alpha 0.5 --entropy-low 2.5 --entropy-high 6.16 --warmup 0 --lr-schedule constant --kd-schedule none \
        --out "$tmp/$name" "$@" >"$tmp/out" 2>"$tmp/err" </dev/null
}

# What a run logged, without how fast it was.
numbers() { sed -E 's/,"(tokens_per_second|peak_share|comm|wait)":[^,}]*//g' "$tmp/$1/log.jsonl"; }

# Two runs logged the same numbers but for 1e-5 of each.
agree() {
    paste -d '\n' <(numbers "$1") <(numbers "$2") | tr -c '0-9.eE+\n-' ' ' | awk '
        NR % 2 { for (i = 1; i <= NF; i++) first[i] = $i; n = NF; next }
        { if (NF != n || n < 10) exit bad = 1
          for (i = 1; i <= NF; i++) { d = $i - first[i]; if (d * d > 1e-10 * $i * $i + 1e-16) exit bad = 1 } }
        END { exit bad || NR < 10 }'
}

same_run() { cmp -s "$tmp/$1/student.safetensors" "$tmp/$2/student.safetensors" && diff -q <(numbers "$1") <(numbers "$2") >/dev/null; }

# refuses STATUS PART COMMAND...: one sentence that contains PART
refuses() {
    local expected=$1 part=$2
    shift 2
    timeout 100 "$@" >"$tmp/out" 2>"$tmp/err" </dev/null
    local status=$?
    check "status $expected and one sentence with '$part' (status $status)" \
        [ "$status" = "$expected" -a "$(grep -c 'error:' "$tmp/err")" = 1 -a -n "$(grep -F -- "$part" "$tmp/err")" ]
}

# ---- training ----

# A teacher of other sizes. Steps enough that every pass is made, recorded and then replayed (replay in kernels/ops.h).
"$programs/train_distill" --device cpu --teacher none --student tiny,vision.image_size=48,vision.layers=1,lm.layers=1,lm.width=96,lm.heads=3 \
    --steps 30 --batch 8 --lr 0.005 --max-tokens 32 --val-data none --out "$tmp/teacher" >/dev/null 2>"$tmp/err"
train cpu --device cpu --steps 5
check "distils on the CPU" [ -s "$tmp/cpu/log.jsonl" ]
check "some positions are left out of the distillation" grep -q '"gate":0\.[0-9]*' "$tmp/cpu/log.jsonl"
train gpu --device cuda --steps 5
check "distils on the GPU to the CPU's numbers" agree cpu gpu
EMULATION_SEED=9 train again --device cuda:0 --steps 5
check "the same bits whatever the order of the GPU's threads" same_run gpu again
EMULATION_DEVICES=2 train two --student-device cuda:1 --teacher-device cuda:0 --steps 5
check "the same bits with the teacher on another GPU" same_run gpu two
train mixed --student-device cpu --teacher-device cuda --steps 5
check "the CPU's numbers with the teacher on the GPU" agree cpu mixed
train resumed --device cuda --steps 2 && train resumed --resume --steps 5
check "resumed on the GPU, the same bits" same_run gpu resumed

# ---- several processes ----

EMULATION_DEVICES=2 train apart --device cuda --ranks 2 --steps 5
check "teacher and student as processes with a GPU each: through NCCL" grep -q 'hidden states come through NCCL$' "$tmp/err"
check "teacher and student as processes with a GPU each: the same bits" same_run gpu apart
train shared --device cuda --ranks 2 --steps 5
check "teacher and student as processes with one GPU: not through NCCL" grep -Eq 'come through (sockets|MPI)$' "$tmp/err"
check "teacher and student as processes with one GPU: the same bits" same_run gpu shared
EMULATION_DEVICES=2 train students --device cuda --ranks 2 --teachers 0 --batch 1 --steps 5
check "two students with a GPU each: through NCCL" grep -q '^ranks: 2 students through NCCL, each with a part' "$tmp/err"
check "two students with a GPU each: the numbers of one" agree gpu students
EMULATION_DEVICES=2 train whole --device cuda --ranks 2 --teachers 0 --batch 1 --steps 5 --no-shard
check "two students with a GPU each, sharded or not: the same bits" same_run students whole

# ---- decoding ----

for device in cpu cuda; do
    timeout 100 "$programs/infer" --device $device -q dev/starter/example.png >"$tmp/text.$device" 2>"$tmp/err"
done
check "writes a program" [ -s "$tmp/text.cpu" ]
check "the GPU writes what the CPU writes" cmp -s "$tmp/text.cpu" "$tmp/text.cuda"

# The images' texts are the same on every device and in every batch, also when they are sampled.
together() { # NAME OPTIONS...
    local name=$1
    shift
    timeout 200 "$programs/infer" -q --max-tokens 14 --temperature 1.5 --top-p 0.95 --top-k 40 --seed 4 "$@" \
        dev/starter/example.png dev/starter/example-rendered.png test/fixtures/images/cmyk.jpg >"$tmp/sampled.$name" 2>"$tmp/err"
}
together alone --device cpu --batch 1
together cpu --device cpu
together cuda --device cuda --batch 2
check "samples" [ "$(grep -c '^% ' "$tmp/sampled.alone")" -gt 2 ]
check "texts written together are those written alone" cmp -s "$tmp/sampled.alone" "$tmp/sampled.cpu"
check "the GPU draws what the CPU draws" cmp -s "$tmp/sampled.alone" "$tmp/sampled.cuda"

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
EMULATION_DEVICES=0 timeout 100 "$programs/infer" --device auto -q $image >"$tmp/text.auto" 2>"$tmp/err"
check "auto takes the CPU where no GPU answers" cmp -s "$tmp/text.cpu" "$tmp/text.auto"
EMULATION_MEMORY=90000000 refuses 1 "for the teacher's activations; it holds the teacher's parameters" \
    "$programs/train_distill" --device cuda --val-data none --out "$tmp/large"
EMULATION_MEMORY=11200000 refuses 1 "memory is full" "$programs/train_distill" --device cuda --val-data none \
    --out "$tmp/large"
check "a run that did not fit leaves no student" [ ! -e "$tmp/large/student.safetensors" ]

echo "$passed passed, $failed failed"
[ $failed = 0 ]
