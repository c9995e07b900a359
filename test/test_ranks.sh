#!/bin/bash
# train_distill as several processes (ranks) on CPUs: the same numbers as one process, checkpoints that go from any
# number of ranks to any other, and what happens when a rank dies, differs, or cannot write.
#
#   test/test_ranks.sh build/BF16 build/FP32      the folders with the programs of both precisions
#
# Prints a check only when it fails, with the command and what the ranks said, and at the end "N passed, M failed".
# SEED=N draws other moments for the kills, GROUPS_TO_RUN="apart kills" runs some of the groups, VERBOSE=1 times them.

bf16=$(cd "${1:-build/BF16}" && pwd)/train_distill fp32=$(cd "${2:-build/FP32}" && pwd)/train_distill
root=$(cd "$(dirname "$0")/.." && pwd)
tmp=$(mktemp -d "${TMPDIR:-/tmp}/tikz-ranks-XXXXXX") || exit 1
trap 'umount "$tmp/small" 2>/dev/null; rm -rf "$tmp"' EXIT
cd "$tmp" || exit 1
export OMP_WAIT_POLICY=passive LC_ALL=C
export OMPI_ALLOW_RUN_AS_ROOT=1 OMPI_ALLOW_RUN_AS_ROOT_CONFIRM=1
unset "${!SLURM@}" "${!OMPI_COMM@}"
damage=$tmp/damage
passed=0 failed=0 port=$((20000 + $$ % 10000))
RANDOM=${SEED:-6}

# ---- checks ----

pass() { passed=$((passed + 1)); }

fail() { # WHAT: with the last command and what its ranks said
    failed=$((failed + 1))
    echo "failed: $1"
    echo "    command: ${last[*]//$tmp\//}"
    local i
    for i in "${!status[@]}"; do
        echo "    rank $i: status ${status[i]}, $(grep -v -e '^train ' "err.$i" 2>/dev/null | tail -n 2 | head -c 500)"
    done
}

# check WHAT CONDITION...: a command that must succeed
check() {
    local what=$1
    shift
    if "$@"; then pass; else fail "$what"; fi
}

same() { cmp -s "$1" "$2"; }
same_files() { # A B FILE...: in two folders
    local a=$1 b=$2 f
    shift 2
    for f in "$@"; do same "$a/$f.safetensors" "$b/$f.safetensors" || return 1; done
}
has_lines() { # FILE N
    local lines
    mapfile -t lines <"$1" && [ ${#lines[@]} -ge "$2" ]
} 2>/dev/null
pause() { read -rt "$1" -u 9; }  # SECONDS, without a process
now() { local t=$EPOCHREALTIME; echo $((${t/./} / 1000)); } # milliseconds
no_process() { ! pgrep -f -- "$tmp/$1" >/dev/null; } # FOLDER: none that was told to write there is left

# What a run logged, without how fast it was.
numbers() { sed -E 's/,"(tokens_per_second|peak_share|comm|wait)":[^,}]*//g' "$1/log.jsonl"; }
same_log() { [ -s "$1/log.jsonl" ] && [ "$(numbers "$1")" = "$(numbers "$2")" ]; }

# near A B E LINES: every number that two runs logged agrees to E (of itself where it is above 1), in LINES lines
near() {
    paste -d '\n' <(numbers "$1") <(numbers "$2") | tr -c '0-9.eE+\n-' ' ' | awk -v e="$3" -v lines="$4" '
        NR % 2 { for (i = 1; i <= NF; i++) first[i] = $i; n = NF; next }
        { if (NF != n || n < 4) exit bad = 1
          for (i = 1; i <= NF; i++) {
              d = $i - first[i]; size = $i * $i > 1 ? $i * $i : 1
              if (d * d > e * e * size) exit bad = 1 } }
        END { exit bad || NR != 2 * lines }'
}

# The weights agree to rounding: the largest difference of two safetensors files of fp32 is below E.
close_weights() { # A B E
    local a b
    a=$(od -An -v -tf4 -w4 -j "$(header_bytes "$1")" "$1") b=$(od -An -v -tf4 -w4 -j "$(header_bytes "$2")" "$2")
    paste <(echo "$a") <(echo "$b") | awk -v e="$3" '{ d = $1 - $2; if (d > e || -d > e) exit bad = 1 }
        END { exit bad || NR < 1000 }'
}
header_bytes() { echo $((8 + $(od -An -tu8 -N8 "$1"))); }

# ---- running ----

# run COMMAND...: leaves status[0] and the files out and err.0
run() {
    last=("$@")
    status=()
    timeout 120 "$@" >out 2>err.0 </dev/null
    status=($?)
}

succeeds() { # COMMAND...
    run "$@"
    check "ends with status 0" [ "${status[0]}" = 0 ]
}

# launch N COMMAND...: as N processes that meet by hand, their ids in pid, what they say in err.0, err.1, ... To all,
# or with for_rank=(...) in the place of a rank, options that only this one has.
launch() {
    local ranks=$1 r
    shift
    last=("$@" "(as $ranks ranks)")
    port=$((port + 1)) pid=() status=()
    for ((r = 0; r < ranks; r++)); do
        # shellcheck disable=SC2086
        "$@" ${for_rank[r]} --rendezvous 127.0.0.1:$port --rank $r --ranks "$ranks" >out.$r 2>err.$r </dev/null &
        pid[r]=$!
    done
}

# Waits for the launched ranks, at most $1 seconds (then they are killed, and their status is that of kill).
finish() {
    local until=$(($(now) + 1000 * $1)) r
    for r in "${!pid[@]}"; do
        while [ "$(now)" -lt $until ] && kill -0 "${pid[r]}" 2>/dev/null; do pause 0.01; done
        kill -9 "${pid[r]}" 2>/dev/null && late=1
        wait "${pid[r]}" 2>/dev/null
        status[r]=$?
    done
}

all_end() { # STATUS
    local s
    for s in "${status[@]}"; do [ "$s" = "$1" ] || return 1; done
}

together() { # N COMMAND...: that succeeds on all ranks
    launch "$@"
    finish 120
    check "all ranks end with status 0" all_end 0
}

# Every rank but $1 (none: all) has said exactly one sentence, with all the other arguments in it.
one_sentence_each() { # EXCEPT PART...
    local r part except=$1
    shift
    for r in "${!status[@]}"; do
        [ "$r" = "$except" ] && continue
        [ "$(grep -c 'error:' err.$r)" = 1 ] && [[ $(tail -n 1 err.$r) == "train_distill: error: "* ]] || return 1
        for part in "$@"; do grep -F 'error:' err.$r | grep -qF -- "$part" || return 1; done
    done
}

refuses() { # STATUS PART COMMAND...: one process that says one sentence
    local expected=$1 part=$2
    shift 2
    run "$@"
    check "status $expected, one sentence with '$part'" eval '[ ${status[0]} = $expected ] && one_sentence_each "" "$part"'
}

# ---- what the tests use ----

mkfifo fifo && exec 9<>fifo
${CC:-cc} -std=c11 -D_GNU_SOURCE -O1 "$root/test/damage.c" -o "$damage" -lm -lpthread || exit 1
ln -s "$root/dev" dev
"$damage" part dev/starter/train.bin train.bin 0 64 && "$damage" part dev/starter/train.bin val.bin 64 8 || exit 1
"$damage" part dev/starter/train.bin other.bin 72 64 || exit 1
shape=tiny,vision.image_size=48,vision.layers=1,vision.width=32,vision.heads=1,vision.mlp=64
shape=$shape,lm.layers=1,lm.width=32,lm.heads=2,lm.kv_heads=1,lm.head_dim=16,lm.ffn=64
wide=${shape/lm.width=32/lm.width=48}                                         # another width than the student's
large=${shape/vision.image_size=48/vision.image_size=96,vision.patch=16}      # other pictures, as many image tokens
for t in wide large; do
    succeeds "$fp32" --data train.bin --val-data none --batch 8 --teacher none --student ${!t} --steps 20 --lr 0.01 \
        --threads 1 --out $t
    cp $t/student.safetensors $t.safetensors
done
common=(--data "$tmp/train.bin" --val-data "$tmp/val.bin" --eval-batches 2 --threads 1 --student "$shape" --overwrite)
taught=("${common[@]}" --teacher "$tmp/wide.safetensors" --batch 2)
alone=("${common[@]}" --teacher none --batch 2)
every_term=(--w-embed 0.3 --w-hard 0.2 --soft-loss jsd --entropy-low 0.2 --entropy-high 5)

# ---- teacher and student apart ----

# apart NAME RANKS PARTS OPTIONS...: ranks against one process, bit for bit, in both precisions
apart_case() {
    local name=$1 ranks=$2 parts=$3 train
    shift 3
    for train in "$bf16" "$fp32"; do
        succeeds "$train" "${taught[@]}" --steps 4 --eval-every 2 --out one "$@"
        together "$ranks" "$train" "${taught[@]}" --steps 4 --eval-every 2 --out apart $parts "$@"
        check "$name: teacher and student apart log what one process does" same_log one apart
        check "$name: and leave the same bits" same_files one apart student best state
    done
}

apart() {
    apart_case plain 2 ""
    apart_case "every term" 2 "" "${every_term[@]}" --accum 2
    apart_case "other pictures" 2 "" --teacher large.safetensors --augment --w-embed 0.3
    apart_case image2tikz 2 "" --kd-schedule image2tikz --steps 9
    apart_case "two teachers" 3 "--teachers 2" --accum 3 --w-embed 0.1
    apart_case "more teachers than work" 4 "--teachers 3"
    local train
    for train in "$bf16" "$fp32"; do # against students that teach themselves
        together 2 "$train" "${taught[@]}" --steps 4 --out one --teachers 0 "${every_term[@]}"
        together 3 "$train" "${taught[@]}" --steps 4 --out apart --teachers 1 "${every_term[@]}"
        check "two students, one teacher: the same log" same_log one apart
        check "two students, one teacher: the same bits" same_files one apart student best state-4.0-of-2 state-4.1-of-2
        together 4 "$train" "${taught[@]}" --steps 4 --out apart --students 2 --no-shard "${every_term[@]}"
        check "two students, two teachers: the same log" same_log one apart
        check "two students, two teachers: the same bits" same_files one apart student best
    done
    check "waiting is logged" [ "$("$damage" json apart/log.jsonl wait comm | grep -cv -e '- ')" = 4 ]
    check "who waits for whom is said" grep -Eq \
        '^the student waited [0-9.]+ s for its teachers \([0-9.]+ % of the time\), the last teacher [0-9.]+ s' err.0
    check "communication is said" grep -Eq '^communication: [0-9.]+ s, of which the student waited' err.0
    check "only rank 0 speaks" [ -s err.0 -a ! -s err.1 -a ! -s err.2 -a ! -s err.3 ]
    check "only rank 0 prints the student" [ "$(cat out.?)" = apart/best.safetensors ]
}

# ---- data parallel ----

parallel() {
    local more=(--steps 8 --eval-every 4 --clip 1) batch2=("${taught[@]}" "${every_term[@]}")
    succeeds "$fp32" "${batch2[@]}" "${more[@]}" --batch 8 --eval-batches 1 --out one
    together 2 "$fp32" "${batch2[@]}" "${more[@]}" --teachers 0 --batch 4 --eval-batches 2 --out two
    check "two ranks with half the batch: the losses to 1e-6" near one two 1e-6 10
    together 4 "$fp32" "${batch2[@]}" "${more[@]}" --teachers 0 --eval-batches 4 --out four
    check "four ranks with a quarter: the losses to 1e-6" near one four 1e-6 10
    check "four ranks: the weights to rounding" close_weights one/student.safetensors four/student.safetensors 1e-5
    together 2 "$fp32" "${batch2[@]}" "${more[@]}" --teachers 0 --accum 2 --eval-batches 4 --out accum
    check "two ranks with micro-batches: the losses to 1e-6" near one accum 1e-6 10
    succeeds "$fp32" "${alone[@]}" "${more[@]}" --batch 6 --eval-batches 1 --out one
    together 3 "$fp32" "${alone[@]}" "${more[@]}" --eval-batches 3 --out three
    check "three ranks with a third: the losses to 1e-6" near one three 1e-6 10
    local train ranks part
    for train in "$bf16" "$fp32"; do
        for ranks in 2 3; do
            for part in vision,connector,lm lm; do
                local all=("${taught[@]}" --w-embed 0.3 --teachers 0 --steps 3 --eval-every 2 --train $part)
                [ $part = lm ] && all=("${alone[@]}" --steps 3 --train lm)
                together $ranks "$train" "${all[@]}" --out sharded
                together $ranks "$train" "${all[@]}" --no-shard --out whole
                check "sharded or not ($ranks, $part): the same log" same_log sharded whole
                check "sharded or not ($ranks, $part): the same bits" same_files sharded whole student best
                check "a part each" [ "$(ls sharded/state-3.*-of-$ranks.safetensors | wc -l)" = $ranks ]
                check "no parts with --no-shard" eval '[ -z "$(ls whole | grep state-)" ]'
                succeeds "$train" --resume --out sharded --steps 4
                succeeds "$train" --resume --out whole --steps 4
                check "sharded or not: the same optimizer state" same_files sharded whole student state
            done
        done
    done
}

for group in ${GROUPS_TO_RUN:-apart parallel}; do
    begin=$SECONDS
    $group
    [ -n "$VERBOSE" ] && echo "$group: $((SECONDS - begin)) s" >&2
done
[ -n "$VERBOSE" ] && times >&2
echo "$passed passed, $failed failed"
[ $failed = 0 ]
