#!/bin/bash
# train_distill as several processes (ranks) that mpirun starts, on CPUs: the same numbers as one process, checkpoints
# that go from any number of ranks to any other, and what happens when a rank is killed, differs, or cannot write.
#
#   test/test_parallel.sh build/BF16 build/FP32 [quick]      the folders with the programs of both precisions
#
# quick: one case of each. GROUPS_TO_RUN="parallel killing" runs some of the groups, SEED=N draws other moments for the
# kills, KILLS=N makes so many (23), VERBOSE=1 times the groups.
. "$(dirname "$0")/check.sh"
bf16=$(cd "${1:-build/BF16}" && pwd)/train_distill fp32=$(cd "${2:-build/FP32}" && pwd)/train_distill
begin_test parallel
cd "$tmp" || exit 1
export CUDA_VISIBLE_DEVICES= OMP_NUM_THREADS=1
. "$root/test/mpi.sh"
have_mpi "$bf16" || end_test
damage=$tmp/damage host=$(hostname)
RANDOM=${SEED:-6}

# ---- conditions ----

same_files() { # A B FILE...: in two folders
    local a=$1 b=$2 f
    shift 2
    for f in "$@"; do same "$a/$f.safetensors" "$b/$f.safetensors" || return 1; done
}

# near_log A B E LINES: every number that two runs logged agrees to E (of itself where it is above 1), in LINES lines
near_log() {
    paste -d '\n' <(numbers "$1") <(numbers "$2") | tr -c '0-9.eE+\n-' ' ' | awk -v e="$3" -v lines="$4" '
        NR % 2 { for (i = 1; i <= NF; i++) first[i] = $i; n = NF; next }
        { if (NF != n || n < 4) exit bad = 1
          for (i = 1; i <= NF; i++) {
              d = $i - first[i]; size = $i * $i > 1 ? $i * $i : 1
              if (d * d > e * e * size) exit bad = 1 } }
        END { exit bad || NR != 2 * lines }'
}

# The weights of two fp32 models are at most E apart. Only the bias of the vision encoder's keys may be 10 E: it moves all
# scores of a query alike, so that its gradient is rounding and nothing else, and AdamW moves it by the full rate.
close_weights() { # A B E
    local a b bias keys
    a=$(od -An -v -tf4 -w4 -j "$(header_bytes "$1")" "$1") b=$(od -An -v -tf4 -w4 -j "$(header_bytes "$2")" "$2")
    read -r _ bias keys _ < <("$damage" tensor "$1" vision.0.qkv.bias | tr -d '[]') # values, first byte
    keys=$(((keys - $(header_bytes "$1")) / 4 + bias / 3))
    paste <(echo "$a") <(echo "$b") | awk -v e="$3" -v keys=$keys -v width=$((bias / 3)) '
        { d = $1 > $2 ? $1 - $2 : $2 - $1; if (d > (NR > keys && NR <= keys + width ? 10 * e : e)) exit bad = 1 }
        END { exit bad || NR < 1000 }'
}
header_bytes() { echo $((8 + $(od -An -tu8 -N8 "$1"))); }

no_rank_left() { # of this test's
    local p
    for p in $(pgrep -x train_distill); do [[ $(readlink "/proc/$p/cwd") != "$tmp"* ]] || return 1; done
}

# ---- running ----

describe_last() {
    local command="${last[*]}"
    command=${command//"${common[*]}"/...}
    echo "command: ${command//$tmp\//}"
    echo "status $status, stderr: $(grep -v '^train ' err | tail -n 4 | head -c 900)"
}

# The command of N ranks, in `line`. program_for[R], only[R] (options) and before[R] (a command of the shell) hold for rank
# R alone.
program_for=() before=() only=() launcher_options=()
rank_line() { # N PROGRAM OPTIONS...
    local ranks=$1 program=$2 r
    shift 2
    line=("${mpirun[@]}" "${launcher_options[@]}")
    for ((r = 0; r < ranks; r++)); do
        [ $r = 0 ] || line+=(:)
        # shellcheck disable=SC2206
        line+=(-n 1 bash -c "${before[r]:-true} && exec \"\$0\" \"\$@\"" "${program_for[r]:-$program}" "$@" ${only[r]})
    done
    [ -n "${program_for[*]}${before[*]}${only[*]}" ] || line=("${mpirun[@]}" "${launcher_options[@]}" -n "$ranks" "$program" "$@")
}

ranks_run() { # N PROGRAM OPTIONS...
    rank_line "$@"
    run "${line[@]}"
}

together() { # N PROGRAM OPTIONS...: that succeeds
    ranks_run "$@"
    check "all ranks end with status 0" [ $status = 0 ]
}

# The run failed with one sentence in all, which has all of these parts.
said_once() { # PART...
    local part
    [ $status = 1 ] && [ "$(grep -c 'error:' err)" = 1 ] || return 1
    for part in "train_distill: error: " "$@"; do grep -F 'error:' err | grep -qF -- "$part" || return 1; done
}

# launch N PROGRAM OPTIONS...: in the background; pid[R] is the process of rank R
launch() {
    local ranks=$1 r p
    rank_line "$@"
    last=("${line[@]}")
    : >launched
    : >out
    "${line[@]}" >out 2>err </dev/null &
    launcher=$! pid=()
    while [ ${#pid[@]} -lt "$ranks" ] && kill -0 $launcher 2>/dev/null; do
        for p in $(pgrep -P $launcher); do
            r=$(tr '\0' '\n' <"/proc/$p/environ" | sed -n 's/^OMPI_COMM_WORLD_RANK=//p')
            [ -z "$r" ] || pid[r]=$p
        done 2>/dev/null
        pause 0.01
    done
}

# finish SECONDS: waits for the launched ranks, at most so long; took: how many milliseconds it was
finish() {
    local begin=$EPOCHREALTIME
    while took=$(((${EPOCHREALTIME/./} - ${begin/./}) / 1000)) && [ $took -lt $((1000 * $1)) ] && kill -0 $launcher; do
        pause 0.02
    done
    kill -9 $launcher
    wait $launcher
    status=$?
} 2>/dev/null

# ---- what the tests use ----

${CC:-cc} -std=c11 -D_GNU_SOURCE -O1 "$root/test/damage.c" -o "$damage" -lz -lm -lpthread || exit 1
ln -s "$root/dev" dev
"$damage" part dev/starter/train.bin train.bin 0 64 && "$damage" part dev/starter/train.bin val.bin 64 8 || exit 1
"$damage" part dev/starter/train.bin other.bin 72 64 || exit 1
shape=tiny,vision.image_size=48,vision.layers=1,vision.width=32,vision.heads=1,vision.mlp=64
shape=$shape,lm.layers=1,lm.width=32,lm.heads=2,lm.kv_heads=1,lm.head_dim=16,lm.ffn=64
wide=${shape/lm.width=32/lm.width=48}                                         # another width than the student's
large=${shape/vision.image_size=48/vision.image_size=96,vision.patch=16}      # other images, as many image tokens
for t in wide large; do
    succeeds "$fp32" --data train.bin --val-data none --batch 8 --teacher none --student "${!t}" --steps 20 --lr 0.01 \
        --threads 1 --out $t
    cp $t/student.safetensors $t.safetensors
done
common=(--data "$tmp/train.bin" --val-data "$tmp/val.bin" --eval-batches 2 --threads 1 --student "$shape" --overwrite)
taught=("${common[@]}" --teacher "$tmp/wide.safetensors" --batch 2)
alone=("${common[@]}" --teacher none --batch 2)
every_term=(--w-embed 0.3 --w-layer 0.4 --w-hard 0.2 --soft-loss jsd --entropy-low 0.2 --entropy-high 5)

# ---- the numbers of one process ----

# equals_one NAME RANKS EVAL_BATCHES OPTIONS...: ranks against the run in the folder one
equals_one() {
    local name=$1 ranks=$2 evals=$3
    shift 3
    together "$ranks" "$fp32" "$@" --eval-batches "$evals" --out many
    check "$name: the losses to 1e-6" near_log one many 1e-6 10
    check "$name: the weights to rounding" close_weights one/student.safetensors many/student.safetensors 1e-5
}

parallel() {
    local more=(--steps 8 --eval-every 4 --clip 1) teacher
    for teacher in wide large; do # a teacher of other widths, and one that sees images of another size
        local all=("${taught[@]}" --teacher $teacher.safetensors "${every_term[@]}" "${more[@]}")
        succeeds "$fp32" "${all[@]}" --batch 8 --eval-batches 1 --out one
        equals_one "two ranks with half the batch ($teacher)" 2 2 "${all[@]}" --batch 4
        equals_one "four ranks with a quarter ($teacher)" 4 4 "${all[@]}"
        equals_one "two ranks with micro-batches ($teacher)" 2 4 "${all[@]}" --accum 2
    done
    check "the time for messages is logged" [ "$("$damage" json many/log.jsonl comm | grep -cv -e '- ')" = 8 ]
    check "what runs is said" grep -q '^2 processes, gradients summed through MPI, each with a part of the optimizer' err
    check "only rank 0 speaks" [ "$(grep -c '^student ' err)" = 1 -a "$(grep -c '^data: ' err)" = 1 ]
    check "only rank 0 prints the student" [ "$(cat out)" = many/best.safetensors ]
    succeeds "$fp32" "${alone[@]}" "${more[@]}" --batch 6 --eval-batches 1 --out one
    equals_one "three ranks with a third" 3 3 "${alone[@]}" "${more[@]}"
    together 2 "$bf16" "${taught[@]}" "${more[@]}" --kd-schedule image2tikz --augment light --out many
    check "image2tikz and --augment on two ranks" has_lines many/log.jsonl 10
}

# Each rank reads its own rows of a teacher's cache: the same bits as with the teacher itself.
cached_teacher() {
    local all=("$bf16" "${taught[@]}" --steps 3 --accum 2)
    succeeds "${all[@]}" --write-teacher-cache taught.cache
    together 3 "${all[@]}" --out many
    together 3 "${all[@]}" --teacher-cache taught.cache --out cached
    check "three ranks learn from a cache as from the teacher" same_files many cached student
    succeeds "${all[@]}" --write-teacher-cache other.cache --teacher-cache-kind topk=4
    only=("" "--teacher-cache other.cache")
    ranks_run 2 "${all[@]}" --teacher-cache taught.cache --out unlike
    check "another cache: one sentence" said_once "rank 1 of 2 (on $host): " "has another teacher cache than rank 0: checksum "
    only=()
}

# shards_case PROGRAM RANKS OPTIONS...: sharded or not, bit for bit
shards_case() {
    local train=$1 ranks=$2
    shift 2
    together "$ranks" "$train" "$@" --out sharded
    together "$ranks" "$train" "$@" --no-shard --out whole
    check "sharded or not: the same log" same_log sharded whole
    check "sharded or not: the same bits" same_files sharded whole student best
    check "a shard each" [ "$(ls sharded/state-3.*-of-"$ranks".safetensors | wc -l)" = "$ranks" ]
    check "no shards with --no-shard" eval '[ -z "$(ls whole | grep state-)" ]'
    succeeds "$train" --resume --out sharded --steps 4
    succeeds "$train" --resume --out whole --steps 4
    check "sharded or not: the same optimizer state" same_files sharded whole student state
}

sharding() {
    local train ranks
    for train in "$bf16" "$fp32"; do
        for ranks in 2 3; do
            shards_case "$train" $ranks "${taught[@]}" --w-embed 0.3 --steps 3 --eval-every 2
            shards_case "$train" $ranks "${alone[@]}" --steps 3 --train lm
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

resumed_as_whole() { # WHAT
    check "$1: the losses to 1e-5" near_log whole resumed 1e-5 12
    check "$1: the weights to rounding" close_weights whole/student.safetensors resumed/student.safetensors 1e-4
}

resuming() {
    local n all=("$fp32" "${alone[@]}" "${steady[@]}" --augment light)
    together 4 "${all[@]}" --batch 3 --steps 8 --out whole
    together 4 "${all[@]}" --batch 3 --steps 4 --out four
    succeeds "${all[@]}" --batch 3 --accum 4 --steps 4 --out one
    for n in 1 2 3 4; do
        resumed four $n
        resumed_as_whole "four ranks, then $n"
        check "four ranks, then $n: the old shards are gone" eval '[ -z "$(ls resumed | grep -e -of-4 | grep state-4)" ]'
    done
    check "four ranks, then four: the same bits" same_files whole resumed student state-8.{0,1,2,3}-of-4
    resumed one 4
    resumed_as_whole "one rank, then four"
    rm -rf resumed && cp -r four resumed
    ranks_run 5 "$fp32" --resume --out resumed
    check "images that cannot be divided" eval '[ $status = 1 ] && grep -q "the 12 images of a step cannot be divided among 5" err'
    rm -rf resumed && cp -r four resumed
    ranks_run 2 "$fp32" --resume --out resumed --batch 3 --accum 1
    check "inside an epoch the images of a step stay as they are" eval '[ $status = 1 ] &&
        grep -q "stopped inside an epoch, and its steps had 12 images.* of 6 images can take over only at the end" err'
    together 4 "${all[@]}" --batch 3 --steps 5 --out five # an epoch
    resumed five 2 --batch 3 --accum 1
    check "at the end of an epoch a --resume may say how large a step is" grep -q ' steps of 6 images' err
    resumed four 2 --batch 3
    check "a --resume that repeats --batch keeps the steps" grep -q ' steps of 12 images' err
    succeeds "$fp32" --config four/options.txt --steps 4 --out again
    check "one process takes the recorded options to the same losses" near_log four again 1e-6 6
    ranks_run 2 "$fp32" "${alone[@]}" --steps 2 --batch 65535 --accum 9 --out huge
    check "a step that is too large" eval '[ $status = 1 ] && grep -q "makes a step of .* images; at most 1048576" err'
}

# ---- adapters (LoRA) ----

adapters() {
    local lora=(--student wide.safetensors --lora 4 --lora-targets all --lora-dropout 0.2) all
    local plain=("${alone[@]}" "${lora[@]}" --lora-dropout 0 --steps 8 --eval-every 4)
    succeeds "$fp32" "${plain[@]}" --batch 4 --eval-batches 1 --out one
    together 2 "$fp32" "${plain[@]}" --batch 2 --eval-batches 2 --out many
    check "adapters: the losses of one process to 1e-6" near_log one many 1e-6 10
    all=("$fp32" "${alone[@]}" "${steady[@]}" "${lora[@]}")
    together 2 "${all[@]}" --steps 8 --out whole
    together 2 "${all[@]}" --steps 4 --out four
    check "adapters: the ranks share the optimizer state" [ -s four/state-4.1-of-2.safetensors -a ! -e four/student.safetensors ]
    resumed four 2
    check "adapters: resumed, the same bits" same_files whole resumed adapter state-8.{0,1}-of-2
    only=("" "--lora 5")
    ranks_run 2 "${all[@]}" --steps 2 --out unlike
    check "adapters of another rank: one sentence" said_once "has another --lora than rank 0: 5 instead of 4"
    only=()
}

# The options.txt of a version whose processes had options of their own (cd01bc3), as it was written.
old_options() { # BATCH ACCUM
    cat <<OLD
teacher = none
student = $shape
# tokenizer =
init = none
train = vision,connector,lm
data = train.bin
val-data = val.bin
max-tokens = 0
augment = false
cache = 512
out = old
resume = false
overwrite = false
steps = 8
epochs = 8
batch = $1
accum = $2
lr = 0.001
lr-schedule = cosine
lr-final = 0.05
lr-gamma = 0.1
warmup = -1
decay = 0.05
beta1 = 0.9
beta2 = 0.98
clip = 1
eval-every = 0
eval-batches = 2
patience = 0
seed = 1
# alpha =
temperature = 4
soft-loss = kl
jsd-beta = 0.5
w-ce = 1
w-soft = 0
w-hard = 0
w-embed = 0
kd-schedule = anneal
entropy-low = 0
entropy-high = 1e+09
sure = 2
sure-factor = 0.3
chunk = 0
device = auto
# teacher-device =
# student-device =
threads = 1
recompute = none
gpus = 0
ranks = 3
rank = 1
rendezvous = localhost:29500
teachers = 1
students = 2
shard = true
OLD
}

older() {
    together 2 "$bf16" "${alone[@]}" --steps 8 --out whole
    together 2 "$bf16" "${alone[@]}" --steps 8 --eval-every 4 --out old # the same numbers; it is made younger below
    launch 2 "$bf16" "${alone[@]}" --steps 8 --eval-every 1 --out old
    wait_for $launcher has_lines old/log.jsonl 6
    kill -TERM "${pid[0]}" 2>/dev/null
    finish 30
    old_options 2 2 >old/options.txt
    together 2 "$bf16" --resume --out old
    check "an options.txt of an older version resumes to the same bits" same_files whole old student state-8.{0,1}-of-2
    old_options 4 1 >old.txt
    succeeds "$bf16" --config old.txt --out older --threads 1
    check "an options.txt of an older version serves as --config" near "$("$damage" json older/log.jsonl loss | tail -n 1)" \
        "$("$damage" json whole/log.jsonl loss | tail -n 1)" 0.01
}

# ---- being asked to stop ----

# stops SIGNAL RANKS OPTIONS...: a run of three is sent a signal, to these of its ranks, and then goes on
stops() {
    local signal=$1 whom=$2 r caught
    shift 2
    for _ in 1 2 3 4 5; do # until the signal comes before the end of the run
        rm -rf stopped
        launch 3 "$@" --out stopped
        wait_for $launcher has_lines stopped/log.jsonl $((5 + RANDOM % 20))
        caught=$(sed -n 's/^SigCgt:\s*/0x/p' "/proc/${pid[0]}/status" 2>/dev/null)
        for r in $whom; do kill -"$signal" "${pid[r]}" 2>/dev/null; done
        finish 60
        grep -q '^interrupted: saved step' err && break
    done
    check "$signal to rank $whom: all ranks end with status 0" [ $status = 0 ]
    check "no handler runs on a thread that computes (lib/interrupt.h)" [ $((${caught:-0x4002} & 0x4002)) = 0 ]
    check "$signal to rank $whom: rank 0 says so, once" [ "$(grep -c '^interrupted: saved step' err)" = 1 ]
    goes_on "$signal to rank $whom" "$1"
}

goes_on() { # WHAT PROGRAM
    together 3 "$2" --resume --out stopped
    check "$1: resumed, the same bits" same_files whole stopped student best state-60.{0,1,2}-of-3
    check "$1: resumed, the same log" same_log whole stopped
}

stopping() {
    local all=("$bf16" "${taught[@]}" --steps 60 --eval-every 20)
    together 3 "${all[@]}" --out whole
    stops INT 0 "${all[@]}"
    stops TERM "0 1 2" "${all[@]}"
    stops TERM 1 "${all[@]}"
    stops INT 2 "${all[@]}"
    local signal=USR1
    for _ in 1 2 3 4 5; do # mpirun passes it on to its ranks and lets them save
        rm -rf stopped
        launch 3 "${all[@]}" --out stopped
        wait_for $launcher has_lines stopped/log.jsonl 10
        kill -USR1 $launcher 2>/dev/null
        finish 60
        grep -q '^interrupted: saved step' err && break
    done
    check "USR1 to mpirun: all ranks save and end with status 0" eval '[ $status = 0 ] && grep -q "^interrupted: saved step" err'
    goes_on "USR1 to mpirun" "$bf16"
    for signal in INT TERM; do # mpirun ends its ranks with SIGTERM, and a second later by force
        rm -rf stopped
        launch 3 "${all[@]}" --out stopped
        wait_for $launcher has_lines stopped/log.jsonl 30
        kill -$signal $launcher 2>/dev/null
        finish 60
        check "$signal to mpirun: the run ends" [ $took -lt 30000 ]
        goes_on "$signal to mpirun" "$bf16"
    done
    together 3 "$bf16" "${taught[@]}" --lr 0 --steps 40 --eval-every 2 --patience 2 --out patient
    check "--patience stops all ranks" grep -q '^stopped early: no better validation for 2 evaluations' err
    check "after the third evaluation" eval 'has_lines patient/log.jsonl 9 && ! has_lines patient/log.jsonl 10'
    succeeds "$bf16" --resume --out patient --steps 6
    check "a finished run says so" grep -q 'has all of its 6 steps already' err
    together 3 "$bf16" --resume --out patient --steps 6
    check "to several ranks as well, once" [ "$(grep -c 'has all of its 6 steps already' err)" = 1 ]
}

# ---- the folder ----

folders() {
    local all=("${taught[@]}" "${every_term[@]}" --steps 4 --eval-every 2)
    together 3 "$bf16" "${all[@]}" --out whole
    mkdir -p elsewhere/hand
    before=("" "cd elsewhere") only=("" "--out $tmp/hand")
    together 3 "$bf16" "${all[@]}" --out hand
    check "--out by another name: the same bits" same_files whole hand student best state-4.{0,1,2}-of-3
    only=()
    ranks_run 3 "$bf16" "${all[@]}" --out hand
    check "another folder is refused" said_once "rank 1 of 3 (on $host)" "hand is not the folder of rank 0" "or --no-shard"
    together 3 "$bf16" "${all[@]}" --out hand --no-shard
    check "but --no-shard needs none" same_files whole hand student best
    check "and nothing is written there" [ -z "$(ls elsewhere/hand)" ]
    before=()
}

# ---- ranks that are killed ----

kills=0 slowest=0

# A file that the launched run has begun to write and not finished.
partial() { # OUT
    local f
    for f in "$1"/*.partial; do [[ $f -nt launched ]] && return 0; done
    return 1
}

more_lines() { has_lines "$1/log.jsonl" $(($2 + $3)); } # OUT BEFORE N

# await MOMENT OUT: lets a launched run go on to that moment, and a little further
await() {
    case $1 in
    start) pause 0.$(printf %03d $((RANDOM % 250))) ;;
    training) wait_for $launcher more_lines "$2" "$before_lines" $((1 + RANDOM % 7)) ;;
    evaluation) wait_for $launcher more_lines "$2" "$before_lines" 4 ;; # just before the line with its result
    saving) wait_for $launcher partial "$2" ;;
    esac 2>/dev/null
    pause 0.00$((RANDOM % 8))
}

# strike VICTIM OUT STEPS: rank VICTIM of the launched run is killed at a random moment; mpirun then ends the others. False
# when the run was over before.
moments=(start training evaluation saving training saving)
strike() {
    local victim=$1 out=$2 moment=${moments[kills % ${#moments[@]}]}
    before_lines=$(wc -l 2>/dev/null <"$out/log.jsonl" || echo 0)
    await "$moment" "$out"
    kill -9 "${pid[victim]}" 2>/dev/null
    finish 40
    if [ $status = 0 ]; then
        check "rank $victim killed at the end: the run is whole" \
            [ -n "$(sed -n '$s/^{"step":'"$3"',"val".*/x/p' "$out/log.jsonl")" ]
        return 1
    fi
    kills=$((kills + 1))
    [ $took -gt $slowest ] && slowest=$took
    check "rank $victim killed ($moment): the run ends within 30 s" [ $took -lt 30000 ]
    check "rank $victim killed ($moment): no rank is left" no_rank_left
    check "rank $victim killed ($moment): it could begin, and nothing else went wrong" eval '! grep -q "error:" err'
}

# chain KILLS RANKS STEPS OUT COMMAND...: a run that is killed that many times, each time another rank, and resumed
chain() {
    local count=$1 ranks=$2 steps=$3 out=$4 i
    shift 4
    rm -rf "$out"
    for ((i = 0; i < count; i++)); do
        if [ -e "$out/state.safetensors" ]; then
            launch "$ranks" "$1" --resume --out "$out"
        else
            launch "$ranks" "$@" --steps "$steps" --out "$out"
        fi
        strike $((i % ranks)) "$out" "$steps" || { rm -rf "$out" && i=$((i - 1)); } # it was faster: once more
        [ -z "$between" ] || [ ! -e "$out/state.safetensors" ] || $between $i
    done
    if [ -e "$out/state.safetensors" ]; then
        together "$ranks" "$1" --resume --out "$out"
    else
        together "$ranks" "$@" --steps "$steps" --out "$out"
    fi
    check "no partial file is left" no_partial "$out"
}

killing() {
    local all=("$bf16" "${taught[@]}" --eval-every 3 --w-embed 0.2) between= most=${KILLS:-23}
    together 2 "${all[@]}" --steps 60 --out whole
    chain $((most * 8 / 23)) 2 60 killed "${all[@]}"
    check "two ranks, killed: the same bits" same_files whole killed student best state-60.{0,1}-of-2
    check "two ranks, killed: the same log" same_log whole killed

    all=("$bf16" "${alone[@]}" --eval-every 3)
    together 3 "${all[@]}" --steps 60 --out whole
    chain $((most * 9 / 23)) 3 60 killed "${all[@]}"
    check "three ranks, killed: the same bits" same_files whole killed student best state-60.{0,1,2}-of-3
    check "three ranks, killed: the same log" same_log whole killed

    all=("$fp32" "${taught[@]}" --eval-every 2 --eval-batches 0)
    together 2 "${all[@]}" --steps 40 --out whole
    between=other_ranks
    chain $((most * 6 / 23)) 2 40 killed "${all[@]}"
    check "killed, with other numbers of ranks between: the losses to 1e-3" near_log whole killed 1e-3 60
    check "killed, with other numbers of ranks between: the weights to rounding" \
        close_weights whole/student.safetensors killed/student.safetensors 1e-2
    [ -n "$VERBOSE" ] && echo "$kills kills; a run ended within $slowest ms" >&2
    check "as many kills as asked for" [ $kills -ge $((most - 2)) ]
}

# Goes on for a moment with another number of ranks.
other_ranks() { # N
    local counts=(1 4 2) n=${counts[$1 % 3]}
    launch "$n" "$fp32" --resume --out killed
    before_lines=$(wc -l <killed/log.jsonl)
    wait_for $launcher more_lines killed "$before_lines" 4
    kill -TERM "${pid[0]}" 2>/dev/null
    finish 30
    check "resumed with $n ranks" [ $status = 0 ]
}

# ---- ranks that differ ----

# differs WHAT ONLY PART...: rank 1 is started with something of its own, and says what
differs() {
    local what=$1
    only=("" "$2")
    shift 2
    ranks_run 2 "$bf16" "${taught[@]}" --steps 2 --out unlike
    check "another $what: one sentence" said_once "rank 1 of 2 (on $host): " "$@"
    only=()
}

differing() {
    differs seed "--seed 2" "has another --seed than rank 0: 2 instead of 1; start all ranks alike"
    differs "learning rate" "--lr 0.002" "has another --lr than rank 0: 0.002 instead of 0.001"
    differs "number of steps" "--steps 3" "has another --steps than rank 0: 3 instead of 2"
    differs batch "--batch 4" "has another --batch than rank 0: 4 instead of 2"
    differs "training data" "--data other.bin" "has another training data than rank 0: checksum "
    differs "validation data" "--val-data other.bin" "has another validation data than rank 0: checksum "
    differs teacher "--teacher large.safetensors" "has another teacher than rank 0: checksum "
    differs student "--student small" "has another student than rank 0: small instead of tiny,"
    differs start "--init large.safetensors" "has another init than rank 0: checksum "
    program_for=("" "$fp32")
    differs build "" "has another build than rank 0: checksum "
    program_for=()
    check "no run began" [ ! -e unlike/student.safetensors -a ! -e unlike/log.jsonl ]
    differs "data that is not there" "--data nothing.bin" "nothing.bin"
    differs "teacher that is not one" "--teacher train.bin" "teacher"
    together 2 "$bf16" "${taught[@]}" --steps 2 --out unlike
    program_for=("" "$fp32")
    ranks_run 2 "$bf16" --resume --out unlike --steps 4
    check "another build, when it resumes: one sentence" said_once "rank 1 of 2 (on $host): " "has another build than rank 0"
    program_for=()
    together 2 "$bf16" --resume --out unlike --steps 4
}

# ---- ranks that cannot write ----

disks() {
    local all=("$bf16" "${alone[@]}" --steps 40 --eval-every 4) victim limit
    together 2 "${all[@]}" --out whole
    launcher_options=(--mca btl tcp,self) # the memory that ranks share is files for the system, and larger than the limit
    for victim in 0 1; do
        for limit in 100 240; do # no shard of the state fits; only it, not the student
            [ $victim$limit = 1240 ] && continue
            rm -rf full
            launch 2 "${all[@]}" --out full
            wait_for $launcher has_lines full/log.jsonl 12
            kill -TERM "${pid[0]}"
            finish 30
            cp full/state.safetensors before.state
            before[victim]="trap '' XFSZ && ulimit -f $limit"
            ranks_run 2 "$bf16" --resume --out full
            before=()
            check "rank $victim cannot write: one sentence" said_once "rank $victim of 2 (on $host): cannot write full/" "File too large"
            check "rank $victim cannot write: the checkpoint is the same" same full/state.safetensors before.state
            check "rank $victim cannot write: it leaves nothing half-written" \
                eval '[ -z "$(ls full/*.partial 2>/dev/null | grep -v -e "\.$((1 - victim))-of-")" ]'
            together 2 "$bf16" --resume --out full
            check "rank $victim could not write: resumed, the same bits" \
                same_files whole full student best state-40.{0,1}-of-2
            check "rank $victim could not write: old shards are gone" [ "$(ls full | grep -c state-)" = 2 ]
        done
    done
    launcher_options=()

    mkdir -p small
    if ! { [ "$(id -u)" = 0 ] && mount -t tmpfs -o size=2m tmpfs small 2>/dev/null; }; then
        echo "not tested here: a full file system (it takes root)"
        return
    fi
    together 2 "${all[@]}" --steps 4 --out small/out
    cp small/out/state.safetensors before.state
    head -c 4000000 /dev/zero >small/filler 2>/dev/null
    truncate -s -131072 small/filler # room for the log and the options
    ranks_run 2 "$bf16" --resume --out small/out --steps 8
    check "a full file system: status 1" [ $status = 1 ]
    check "a full file system: a sentence of each rank at most" eval '[ "$(grep -c error: err)" -le 2 ] && [ "$(grep -c \
        "error: rank . of 2 (on .*): cannot write small/out/.*No space left on device" err)" -ge 1 ]'
    check "a full file system: the checkpoint is the same" same small/out/state.safetensors before.state
    rm small/filler
    together 2 "$bf16" --resume --out small/out --steps 8
    check "a full file system: nothing half-written is left in the end" no_partial small
    umount small
}

# ---- wrong use ----

misusing() {
    local all=("$bf16" "${taught[@]}" --steps 2 --out wrong) option
    for option in "--ranks 2" "--rank 0" "--teachers 1" "--students 2" "--gpus 2" "--rendezvous localhost:5000"; do
        # shellcheck disable=SC2086
        refuses 2 "there is no option ${option% *} any more: several processes are started by mpirun or srun" "${all[@]}" $option
    done
    ranks_run 2 "${all[@]}" --ranks 2
    check "old options under mpirun: status 2" [ $status = 2 ]
    ranks_run 2 "${all[@]}" --data nothing.bin
    check "data that is nowhere: a sentence of each rank at most" eval '[ $status = 1 ] && [ "$(grep -c error: err)" -le 2 ] &&
        grep -q "cannot read nothing.bin" err'
    check "nothing is left of wrong use" [ ! -e wrong/student.safetensors -a ! -e wrong/log.jsonl ]
    succeeds "$bf16" "${alone[@]}" --steps 2 --out wrong
    ranks_run 2 "$bf16" "${alone[@]}" --no-overwrite --steps 2 --out wrong
    check "a folder with a trained student is not touched" said_once "rank 0 of 2 (on " "already holds a trained student"
    ranks_run 2 "$bf16" "${alone[@]}" --resume --no-overwrite --out nowhere
    check "nothing to resume" eval '[ $status = 1 ] && grep -q "resume: there is no checkpoint nowhere/state.safetensors" err'
}

# ---- one case of each, in a minute ----

quick() {
    local more=(--steps 8 --eval-every 4 --clip 1)
    succeeds "$fp32" "${taught[@]}" "${every_term[@]}" "${more[@]}" --batch 4 --eval-batches 1 --out one
    equals_one "two ranks with half the batch" 2 2 "${taught[@]}" "${every_term[@]}" "${more[@]}"
    shards_case "$bf16" 2 "${taught[@]}" --w-embed 0.3 --steps 3 --eval-every 2
    local all=("$bf16" "${taught[@]}" --steps 60 --eval-every 20)
    together 3 "${all[@]}" --out whole
    stops TERM 1 "${all[@]}"
    between='' && chain 2 3 60 killed "${all[@]}"
    check "killed twice: the same bits" same_files whole killed student best state-60.{0,1,2}-of-3
    differs "learning rate" "--lr 0.002" "has another --lr than rank 0: 0.002 instead of 0.001"
    cached_teacher
    refuses 2 "there is no option --ranks any more: several processes are started by mpirun" "$bf16" --ranks 2
}

if [ "${3:-}" = quick ]; then run_groups quick adapters; else
    run_groups parallel cached_teacher sharding resuming adapters older stopping folders killing differing disks misusing
fi
check "no rank is left" no_rank_left
end_test
