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
# Not in a subshell: bash runs this there when a signal comes early.
trap '[ $BASHPID = $$ ] && { umount "$tmp/small" 2>/dev/null; rm -rf "$tmp"; }' EXIT
cd "$tmp" || exit 1
export OMP_WAIT_POLICY=passive LC_ALL=C CUDA_VISIBLE_DEVICES=
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
    local command="${last[*]}"
    command=${command//"${common[*]}"/...}
    echo "    command: ${command//$tmp\//}"
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
now() { local t=$EPOCHREALTIME; printf -v "$1" %d $((${t/./} / 1000)); } # VARIABLE, in milliseconds
no_process() { # none of ours is left
    local p
    for p in $(pgrep -x train_distill); do [ "$(readlink "/proc/$p/cwd")" = "$tmp" ] && return 1; done
    return 0
}

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

# launch N PROGRAM OPTIONS...: as N processes that meet by hand, their ids in pid, what they say in err.0, err.1, ...
# program_for[R], before[R] (a command of the shell) and only[R] (options) hold for rank R alone.
program_for=() before=() only=()
launch() {
    local ranks=$1 program=$2 r
    shift 2
    last=("$program" "$@" "(as $ranks ranks, ${only[*]@Q})")
    port=$((port + 1)) pid=() status=()
    : >launched
    for ((r = 0; r < ranks; r++)); do
        # shellcheck disable=SC2086
        (eval "${before[r]}" && exec "${program_for[r]:-$program}" "$@" --rendezvous 127.0.0.1:$port --rank $r \
            --ranks "$ranks" ${only[r]}) >out.$r 2>err.$r </dev/null &
        pid[r]=$!
    done
}

# Waits for the launched ranks, at most $1 seconds (then they are killed, and their status is that of kill); took: how
# many milliseconds it was.
finish() {
    local begin r
    now begin
    for r in "${!pid[@]}"; do
        while now took && took=$((took - begin)) && [ $took -lt $((1000 * $1)) ] && kill -0 "${pid[r]}"; do
            pause 0.01
        done
        kill -9 "${pid[r]}"
        wait "${pid[r]}"
        status[r]=$?
    done
} 2>/dev/null

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

each_names() { # EXCEPT PATTERN: in the sentence of every other rank
    local r
    for r in "${!status[@]}"; do
        [ "$r" = "$1" ] || grep -qE "error: .*($2)" err.$r || return 1
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
large=${shape/vision.image_size=48/vision.image_size=96,vision.patch=16}      # other images, as many image tokens
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
    apart_case "other images" 2 "" --teacher large.safetensors --augment --w-embed 0.3
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
    check "who waits for whom is said" waited 0 0 0
    check "only rank 0 speaks" [ -s err.0 -a ! -s err.1 -a ! -s err.2 -a ! -s err.3 ]
    check "only rank 0 prints the student" [ "$(cat out.?)" = apart/best.safetensors ]
    held 2 0.4 0 0
    held 1 0 0.2 0.2
    check "for rank 1" grep -q 'slower students (.*, mostly for rank 1)' err.0
}

# waited A B C: the students at least A s for teachers, B for slower students, the teachers C for students
waited() {
    local s='([0-9.]+) s' share='\([0-9.]+ %' said
    said="^on average a student waited $s for teachers $share of the time\), $s for slower students $share, mostly for rank [0-9]\), \
$s for messages $share\), which took $s in all; a teacher $s for students $share\)\$"
    [[ $(tail -n 1 err.0) =~ $said ]] && awk -v a="${BASH_REMATCH[1]}" -v b="${BASH_REMATCH[2]}" -v c="${BASH_REMATCH[5]}" \
        -v least="$*" 'BEGIN { split(least, l, " "); exit !(a >= l[1] && b >= l[2] && c >= l[3]) }'
}

# held RANK A B C: a run of two students and a teacher in which one rank is stopped again and again, 1.6 s in all. Its own
# clock goes on meanwhile: most of the time must be in its computing.
held() {
    local rank=$1 i
    shift
    for _ in 1 2 3 4 5; do # until that is before the end of the run
        rm -rf held
        launch 3 "$bf16" "${taught[@]}" --teachers 1 --batch 16 --steps 250 --eval-every 250 --out held
        wait_for has_lines held/log.jsonl 5
        for ((i = 0; i < 40; i++)); do
            kill -STOP "${pid[rank]}" || break
            pause 0.04
            kill -CONT "${pid[rank]}" || break
            pause 0.005
        done
        finish 60
        [ $i = 40 ] && break
    done 2>/dev/null
    check "rank $rank held up: all ranks end with status 0" all_end 0
    check "rank $rank held up: that is where the time has gone: $(tail -n 1 err.0)" waited "$@"
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

# ---- going on with other numbers of ranks ----

steady=(--lr-schedule constant --kd-schedule none --warmup 0 --eval-batches 0 --eval-every 2) # whatever --steps is

# resumed FROM RANKS OPTIONS...: goes on with a copy of a run of four steps to the eighth
resumed() {
    local from=$1 ranks=$2
    shift 2
    rm -rf resumed
    cp -r "$from" resumed
    together "$ranks" "$fp32" --resume --out resumed --steps 8 "$@"
}

resuming() {
    local n all=("$fp32" "${alone[@]}" "${steady[@]}" --augment)
    together 4 "${all[@]}" --batch 3 --steps 8 --out whole
    together 4 "${all[@]}" --batch 3 --steps 4 --out four
    succeeds "${all[@]}" --batch 3 --accum 4 --steps 4 --out one
    for n in 1 2 3 4; do
        resumed four $n
        check "four ranks, then $n: the losses to 1e-5" near whole resumed 1e-5 12
        check "four ranks, then $n: the weights to rounding" \
            close_weights whole/student.safetensors resumed/student.safetensors 1e-4
        check "four ranks, then $n: the old parts are gone" eval '[ -z "$(ls resumed | grep -e -of-4 | grep state-4)" ]'
    done
    check "four ranks, then four: the same bits" same_files whole resumed student state-8.2-of-4
    resumed one 4
    check "one rank, then four: the losses to 1e-5" near whole resumed 1e-5 12
    check "one rank, then four: the weights to rounding" \
        close_weights whole/student.safetensors resumed/student.safetensors 1e-4
    rm -rf resumed && cp -r four resumed
    refuses 1 "the 12 images of a step cannot be divided among 5 students" "$fp32" --resume --out resumed --ranks 5
    resumed four 2 --batch 3 --accum 1
    check "a --resume may say itself how large a step is" grep -q ' steps of 6 images' err.0
    resumed four 2 --batch 3
    check "a --resume that repeats --batch keeps the steps" grep -q ' steps of 12 images' err.0
    succeeds "$fp32" --config four/options.txt --steps 4 --out again
    check "one process takes the recorded options to the same losses" near four again 1e-6 6

    all=("$bf16" "${taught[@]}" "${every_term[@]}" "${steady[@]}")
    together 2 "${all[@]}" --steps 8 --out whole
    together 2 "${all[@]}" --steps 4 --out apart
    cp -r apart resumed-one && cp -r apart resumed-three
    succeeds "$bf16" --resume --out resumed-one --steps 8
    check "teacher and student apart, then one process: the same bits" same_files whole resumed-one student best state
    check "teacher and student apart, then one process: the same log" same_log whole resumed-one
    together 3 "$bf16" --resume --out resumed-three --steps 8 --teachers 2
    check "then two teachers: the same bits" same_files whole resumed-three student best state
}

# ---- being asked to stop ----

# stops SIGNAL RANKS OPTIONS...: a run of three is sent a signal, to these of its ranks, and then goes on
stops() {
    local signal=$1 whom=$2 r caught
    shift 2
    for _ in 1 2 3 4 5; do # until the signal comes before the end of the run
        rm -rf stopped
        launch 3 "$@" --out stopped
        wait_for has_lines stopped/log.jsonl $((5 + RANDOM % 20))
        caught=$(sed -n 's/^SigCgt:\s*/0x/p' "/proc/${pid[0]}/status" 2>/dev/null)
        for r in $whom; do kill -"$signal" "${pid[r]}" 2>/dev/null; done
        finish 60
        grep -q '^interrupted: saved step' err.0 && break
    done
    check "$signal to rank $whom: all ranks end with status 0" all_end 0
    check "no handler runs on a thread that computes (lib/interrupt.h)" [ $((${caught:-0x4002} & 0x4002)) = 0 ]
    check "$signal to rank $whom: rank 0 says so" grep -q '^interrupted: saved step' err.0
    together 3 "$1" --resume --out stopped --teachers 1
    check "$signal to rank $whom: resumed, the same bits" same_files whole stopped student best state-60.{0,1}-of-2
    check "$signal to rank $whom: resumed, the same log" same_log whole stopped
}

wait_for() { # COMMAND...: until it succeeds or a launched process has ended, at most 60 s
    local begin=$SECONDS
    until "$@"; do
        [ $((SECONDS - begin)) -lt 60 ] && kill -0 "${pid[@]}" 2>/dev/null || return 1
        pause 0.002
    done
}

stopping() {
    local all=("$bf16" "${taught[@]}" --steps 60 --eval-every 20 --teachers 1)
    together 3 "${all[@]}" --out whole
    stops INT 0 "${all[@]}"
    stops TERM "0 1 2" "${all[@]}"
    stops TERM 1 "${all[@]}"
    stops INT 2 "${all[@]}"
    together 3 "$bf16" "${taught[@]}" --teachers 1 --lr 0 --steps 40 --eval-every 2 --patience 2 --out patient
    check "--patience stops all ranks" grep -q '^stopped early: no better validation for 2 evaluations' err.0
    check "after the third evaluation" eval 'has_lines patient/log.jsonl 9 && ! has_lines patient/log.jsonl 10'
    succeeds "$bf16" --resume --out patient --steps 6
    check "a finished run says so" grep -q 'has all of its 6 steps already' err.0
    together 3 "$bf16" --resume --out patient --steps 6 --teachers 1
    check "to several ranks as well" grep -q 'has all of its 6 steps already' err.0
}

# ---- ways to start ----

launching() {
    local all=("${taught[@]}" "${every_term[@]}" --steps 4 --eval-every 2) n program
    together 3 "$bf16" "${all[@]}" --teachers 1 --out hand
    succeeds "$bf16" "${all[@]}" --ranks 3 --teachers 1 --out copies
    check "--ranks alone: the same log" same_log hand copies
    check "--ranks alone: the same bits" same_files hand copies student best state-4.{0,1}-of-2
    check "--ranks alone: one student is printed" [ "$(cat out)" = copies/best.safetensors ]

    mkdir -p elsewhere/hand
    only=("" "--out $tmp/hand") before=("" "cd elsewhere")
    together 3 "$bf16" "${all[@]}" --teachers 1 --out hand
    check "--out by another name: the same bits" same_files hand copies student best state-4.{0,1}-of-2
    only=("" "--out hand")
    launch 3 "$bf16" "${all[@]}" --teachers 1 --out hand
    finish 30
    check "another folder is refused" eval 'all_end 1 && one_sentence_each "" "rank 1 (on " "hand is not the folder of rank 0"'
    together 3 "$bf16" "${all[@]}" --teachers 1 --out hand --no-shard
    check "but --no-shard needs none" same_files hand copies student best
    only=() before=()

    local address=(SLURM_STEP_NODELIST=localhost SLURM_JOB_ID=$((RANDOM * 5)) SLURM_STEP_ID=0 SLURM_STEP_NUM_TASKS=3)
    last=("${address[@]}" "${all[@]}")
    pid=()
    for n in 0 1 2; do
        env "${address[@]}" SLURM_PROCID=$n "$bf16" "${all[@]}" --teachers 1 --out slurm >out.$n 2>err.$n </dev/null &
        pid[n]=$!
    done
    finish 60
    check "as Slurm starts it: status 0" all_end 0
    check "as Slurm starts it: the same log" same_log slurm copies
    check "as Slurm starts it: the same bits" same_files slurm copies student best state-4.{0,1}-of-2
    SLURM_STEP_NUM_TASKS=2 refuses 2 "Slurm's environment is not whole" "$bf16" "${all[@]}" --out slurm

    if ! command -v mpirun >/dev/null || ! ldd "$bf16" | grep -q libmpi; then
        echo "not tested: starting with mpirun (Open MPI is not there, or the programs were built without it)"
        return
    fi
    program=(mpirun --oversubscribe --bind-to none)
    succeeds "${program[@]}" -n 3 "$bf16" "${all[@]}" --teachers 1 --out mpi
    check "mpirun: through MPI" grep -q '^ranks: 2 students through MPI, .* come through MPI$' err.0
    check "mpirun: the same log" same_log mpi copies
    check "mpirun: the same bits" same_files mpi copies student best state-4.{0,1}-of-2
    succeeds "$bf16" "${all[@]}" --out one
    succeeds "${program[@]}" -n 2 "$bf16" "${all[@]}" --out mpi
    check "mpirun, teacher and student apart: the log of one process" same_log one mpi
    check "mpirun, teacher and student apart: the same bits" same_files one mpi student best state
    succeeds "$bf16" "${all[@]}" --ranks 4 --teachers 0 --out copies
    succeeds "${program[@]}" -n 4 "$bf16" "${all[@]}" --teachers 0 --out mpi
    check "mpirun, four students: the same bits" same_files copies mpi student best state-4.{0,1,2,3}-of-4
}

# ---- ranks that die ----

kills=0 slowest=0

# A file that the launched run has begun to write and not finished.
partial() { # OUT [RANK]: not counting the parts of the state that RANK writes
    local f
    for f in "$1"/*.partial; do [[ $f -nt launched && $f != */state-*."$2"-of-*.partial ]] && return 0; done
    return 1
}

# await MOMENT OUT: lets a launched run go on to that moment, and a little further
await() {
    local lines
    case $1 in
    start) pause 0.$(printf %03d $((RANDOM % 250))) ;;
    training) wait_for more_lines "$2" "$before_lines" $((1 + RANDOM % 7)) ;;
    evaluation) # just before the line with its result
        mapfile -t lines <"$2/log.jsonl"
        wait_for more_lines "$2" "$before_lines" 4
        ;;
    saving) wait_for partial "$2" ;;
    esac 2>/dev/null
    pause 0.00$((RANDOM % 8))
}

more_lines() { has_lines "$1/log.jsonl" $(($2 + $3)); } # OUT BEFORE N

# strike VICTIM OUT: rank VICTIM of the launched run is killed at a random moment. The others must end soon, each with a
# sentence about it. False when the run was over before.
moments=(start training evaluation saving training saving)
strike() {
    local victim=$1 out=$2 moment=${moments[kills % ${#moments[@]}]} r others=1 cause="rank $1 "
    before_lines=$(wc -l 2>/dev/null <"$out/log.jsonl" || echo 0)
    await "$moment" "$out"
    kill -9 "${pid[victim]}" 2>/dev/null
    finish 30
    status[victim]=${status[(victim + 1) % ranks]}
    if all_end 0; then
        check "rank $victim killed at the end: the run is whole" [ -n "$(sed -n '$s/^{"step":'"$steps"',"val".*/x/p' "$out/log.jsonl")" ]
        return 1
    fi
    kills=$((kills + 1))
    [ $moment != start -a $took -gt $slowest ] && slowest=$took
    for r in "${!status[@]}"; do [ "$r" = "$victim" ] || [ "${status[r]}" = 1 ] || others=0; done
    check "rank $victim killed ($moment): the others end with status 1 within 30 s" [ $others = 1 ]
    [ $moment = start ] && cause="rank $victim |rank 0 does not answer at 127.0.0.1:" # which may be gone before one comes
    check "rank $victim killed ($moment): each says so in a sentence" \
        eval 'one_sentence_each $victim "" && each_names $victim "$cause"'
    check "rank $victim killed ($moment): the others leave nothing half-written" \
        eval '[ $victim = 0 ] || ! partial $out $victim'
}

# chain KILLS RANKS STEPS OUT MORE... -- COMMAND...: a run that is killed that many times, each time another rank, and
# resumed; MORE: options of the first launch and of each resumption.
chain() {
    local count=$1 ranks=$2 steps=$3 out=$4 i more=()
    shift 4
    while [ "$1" != -- ]; do more+=("$1") && shift; done
    shift
    rm -rf "$out"
    export TIKZ_ARRIVAL_SECONDS=10 # a rank that was killed before it arrived need not be waited for longer
    for ((i = 0; i < count; i++)); do
        if [ -e "$out/state.safetensors" ]; then
            launch "$ranks" "$1" --resume --out "$out" "${more[@]}"
        else
            launch "$ranks" "$@" --steps $steps --out "$out" "${more[@]}"
        fi
        strike $((i % ranks)) "$out" || { rm -rf "$out" && i=$((i - 1)); } # it was faster: once more
        [ -n "$between" ] && [ -e "$out/state.safetensors" ] && $between $i
    done
    unset TIKZ_ARRIVAL_SECONDS
    if [ -e "$out/state.safetensors" ]; then
        together "$ranks" "$1" --resume --out "$out" "${more[@]}"
    else
        together "$ranks" "$@" --steps $steps --out "$out" "${more[@]}"
    fi
    check "no partial file is left" eval '[ -z "$(find $out -name "*.partial")" ]'
}

killing() {
    local all=("$bf16" "${taught[@]}" --eval-every 3 --w-embed 0.2) between=
    succeeds "${all[@]}" --steps 60 --out whole
    chain 8 2 60 killed -- "${all[@]}"
    check "teacher and student apart, killed 8 times: the same bits" same_files whole killed student best state
    check "teacher and student apart, killed 8 times: the same log" same_log whole killed

    all=("$bf16" "${alone[@]}" --eval-every 3)
    together 3 "${all[@]}" --steps 60 --out whole
    chain 9 3 60 killed -- "${all[@]}"
    check "three students, killed 9 times: the same bits" same_files whole killed student best state-60.{0,1,2}-of-3
    check "three students, killed 9 times: the same log" same_log whole killed

    all=("$fp32" "${taught[@]}" --eval-every 2 --eval-batches 0)
    together 3 "${all[@]}" --steps 40 --teachers 1 --out whole
    between=other_ranks
    chain 6 3 40 killed --teachers 1 -- "${all[@]}"
    check "killed 6 times, other numbers of ranks between: the losses to 1e-3" near whole killed 1e-3 60
    check "killed 6 times, other numbers of ranks between: the weights to rounding" \
        close_weights whole/student.safetensors killed/student.safetensors 1e-2
    copies_killed
    [ -n "$VERBOSE" ] && echo "$kills kills; the other ranks ended within $slowest ms" >&2
    check "at least 20 kills" [ $kills -ge 20 ]
}

# Goes on for a moment with another number of ranks.
other_ranks() { # N
    local numbers=(1 4 2) n=${numbers[$1 % 3]}
    launch "$n" "$fp32" --resume --out killed
    before_lines=$(wc -l <killed/log.jsonl)
    wait_for more_lines killed "$before_lines" 4
    kill -TERM "${pid[0]}" 2>/dev/null
    finish 30
    check "resumed with $n ranks" all_end 0
}

# The ranks that --ranks has started, and the one that has started them.
copies_killed() {
    local victim process children
    for victim in 1 2 0; do
        rm -rf killed
        last=("$bf16" "${taught[@]}" --steps 1000 --ranks 3 --teachers 1 --out killed)
        "${last[@]}" >out 2>err.0 </dev/null &
        process=$! pid=($!) status=()
        wait_for has_lines killed/log.jsonl 3
        children=($process $(pgrep -P $process | sort -n))
        kill -9 "${children[victim]}" && kills=$((kills + 1))
        finish 30
        pause 0.2
        check "--ranks, rank $victim killed: the others say so" [ "$(grep -c "error: rank $victim (on .*, process \
${children[victim]}) has gone; --resume goes on from the last checkpoint" err.0)" = 2 -a "$(grep -c error: err.0)" = 2 ]
        check "--ranks, rank $victim killed: nobody is left" no_process
    done
}

# ---- ranks that differ ----

# differs WHAT ONLY PART...: rank 1 is started with something of its own, and both say what
differs() {
    local what=$1
    only=("" "$2")
    shift 2
    launch 2 "$bf16" "${taught[@]}" --steps 2 --out unlike
    finish 30
    check "another $what is refused" all_end 1
    check "another $what: a sentence each" one_sentence_each "" "$@"
    only=()
}

differing() {
    differs seed "--seed 2" "rank 1 (on " "has another --seed than rank 0: 2 instead of 1; start all ranks alike"
    differs "learning rate" "--lr 0.002" "rank 1 (on " "has another --lr than rank 0: 0.002 instead of 0.001"
    differs "number of steps" "--steps 3" "rank 1 (on " "has another --steps than rank 0: 3 instead of 2"
    differs batch "--batch 4" "rank 1 (on " "has another --batch than rank 0: 4 instead of 2"
    differs "training data" "--data other.bin" "rank 1 (on " "has another training data than rank 0: checksum "
    differs "validation data" "--val-data other.bin" "rank 1 (on " "has another validation data than rank 0: checksum "
    differs teacher "--teacher large.safetensors" "rank 1 (on " "has another teacher than rank 0: checksum "
    differs student "--student small" "rank 1 (on " "has another student than rank 0: small instead of tiny,"
    differs "number of teachers" "--teachers 0" "rank 1 (on " "has another number of teachers than rank 0: 0 instead of 1"
    differs start "--init large.safetensors" "rank 1 (on " "has another init than rank 0: checksum "
    program_for=("" "$fp32")
    differs build "" "rank 1 (on " "has another build than rank 0: checksum "
    program_for=()
    check "no run began" [ ! -e unlike/student.safetensors -a ! -e unlike/log.jsonl ]
    differs "data that is not there" "--data nothing.bin" "rank 1 (on " "cannot read nothing.bin: No such file"
    differs "teacher that is not one" "--teacher train.bin" "rank 1 (on " "train.bin"
    only=("" "--ranks 3")
    launch 2 "$bf16" "${taught[@]}" --steps 2 --teachers 0 --out unlike
    finish 30
    check "another number of ranks: a sentence each" one_sentence_each "" "rank 1 (on " "--ranks 3, rank 0 with --ranks 2"
    only=()
}

# ---- ranks that cannot write ----

disks() {
    local all=("$bf16" "${alone[@]}" --steps 40 --eval-every 4) victim limit
    together 2 "${all[@]}" --out whole
    for victim in 0 1; do
        for limit in 100 240; do # no part of the state fits; only it, not the student
            [ $victim$limit = 1240 ] && continue
            rm -rf full
            launch 2 "${all[@]}" --out full
            wait_for has_lines full/log.jsonl 12
            kill -TERM "${pid[0]}"
            finish 30
            cp full/state.safetensors before.state
            before[victim]="trap '' XFSZ && ulimit -f $limit"
            launch 2 "$bf16" --resume --out full
            before=()
            finish 30
            check "rank $victim cannot write: both end with status 1" all_end 1
            check "rank $victim cannot write: a sentence each" one_sentence_each "" \
                "rank $victim (on " "cannot write full/" "File too large"
            check "rank $victim cannot write: the checkpoint is the same" same full/state.safetensors before.state
            check "rank $victim cannot write: nothing half-written" eval '[ -z "$(find full -name "*.partial")" ]'
            together 2 "$bf16" --resume --out full
            check "rank $victim could not write: resumed, the same bits" \
                same_files whole full student best state-40.{0,1}-of-2
            check "rank $victim could not write: old parts are gone" [ "$(ls full | grep -c state-)" = 2 ]
        done
    done

    mkdir -p small
    if ! { [ "$(id -u)" = 0 ] && mount -t tmpfs -o size=2m tmpfs small 2>/dev/null; }; then
        echo "not tested: a full file system (it takes root)"
        return
    fi
    together 2 "${all[@]}" --steps 4 --out small/out
    cp small/out/state.safetensors before.state
    head -c 4000000 /dev/zero >small/filler 2>/dev/null
    truncate -s -131072 small/filler # room for the log and the options
    launch 2 "$bf16" --resume --out small/out --steps 8
    finish 30
    check "a full file system: both end with status 1" all_end 1
    check "a full file system: a sentence each" one_sentence_each "" "cannot write small/out/" "No space left on device"
    check "a full file system: the checkpoint is the same" same small/out/state.safetensors before.state
    check "a full file system: nothing half-written" eval '[ -z "$(find small -name "*.partial")" ]'
    rm small/filler
    together 2 "$bf16" --resume --out small/out --steps 8
    umount small
}

# ---- wrong use ----

misusing() {
    local all=("$bf16" "${taught[@]}" --steps 2 --out wrong)
    refuses 2 "2 teachers and 2 students need --ranks 4, but there are 3" "${all[@]}" --teachers 2 --students 2 --ranks 3
    refuses 2 "2 teachers and 1 student need --ranks 3, but there are 2" "${all[@]}" --teachers 2 --ranks 2
    refuses 2 "0 teachers and 2 students need --ranks 2, but there is 1" "${all[@]}" --students 2
    refuses 2 "--teachers is 1 without a --teacher" "${all[@]}" --teachers 1 --teacher none --ranks 2
    refuses 2 "--rank needs --rendezvous" "${all[@]}" --rank 0
    refuses 2 "--rendezvous needs --rank R and --ranks N" "${all[@]}" --rendezvous localhost:5000
    refuses 2 "--rank is 2 with --ranks 2; expected 0 to 1" "${all[@]}" --rendezvous localhost:5000 --rank 2 --ranks 2
    refuses 2 "--gpus is 5; this machine has 0" "${all[@]}" --gpus 5
    refuses 2 "--ranks" "${all[@]}" --ranks 5000
    refuses 1 "nothing.bin" "${all[@]}" --data nothing.bin --teachers 0 --ranks 1
    TIKZ_ARRIVAL_SECONDS=1 refuses 1 "rank 0 does not answer at 127.0.0.1:" "${all[@]}" \
        --rendezvous 127.0.0.1:$((port + 1)) --rank 1 --ranks 2
    TIKZ_ARRIVAL_SECONDS=1 refuses 1 "rank 1 of 2 did not arrive within 1 s" "${all[@]}" \
        --rendezvous 127.0.0.1:$((port + 2)) --rank 0 --ranks 2
    check "nothing is left of wrong use" [ ! -e wrong ]
    succeeds "$bf16" "${alone[@]}" --steps 2 --out wrong
    launch 2 "$bf16" "${alone[@]}" --no-overwrite --steps 2 --out wrong
    finish 30
    check "a folder with a trained student is not touched" one_sentence_each "" "rank 0 (on " "already holds a trained student"
    launch 2 "$bf16" "${alone[@]}" --resume --no-overwrite --out nowhere
    finish 30
    check "nothing to resume" one_sentence_each "" "--resume: there is no checkpoint nowhere/state.safetensors"
}

for group in ${GROUPS_TO_RUN:-apart parallel resuming stopping launching killing differing disks misusing}; do
    begin=$SECONDS
    $group
    check "no process of $group is left" no_process
    [ -n "$VERBOSE" ] && echo "$group: $((SECONDS - begin)) s" >&2
done
[ -n "$VERBOSE" ] && times >&2
echo "$passed passed, $failed failed"
[ $failed = 0 ]
