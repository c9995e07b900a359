#!/bin/bash
# Several processes together: every check of test_comm as local processes, by --rendezvous and by mpirun; then what
# must end a run, each time with one and the same sentence from every rank that is left, in less than 30 seconds.
#
#   test/test_comm.sh build/BF16 [quick]        the folder with test_comm; quick: without what waits or needs root
#
# Prints a check only when it fails, and what is left out; at the end "N passed, M failed".

program=$(cd "${1:-build/BF16}" && pwd)/test_comm || exit 1
quick=${2:-}
tmp=$(mktemp -d "${TMPDIR:-/tmp}/tikz-comm-XXXXXX") || exit 1
spaces=() started=()
finish() {
    for pid in "${started[@]}"; do # those that are still this script's
        [ "$(ps -o ppid= -p "$pid" | tr -d ' ')" = $$ ] && kill -9 "$pid"
    done
    for space in "${spaces[@]}"; do ip netns del "$space"; done
    rm -rf "$tmp"
}
trap finish EXIT
cd "$tmp" || exit 1
export OMP_WAIT_POLICY=passive LC_ALL=C TEST_FOLDER=$tmp OMPI_ALLOW_RUN_AS_ROOT=1 OMPI_ALLOW_RUN_AS_ROOT_CONFIRM=1
passed=0 failed=0

check() { # WHAT CONDITION...
    local what=$1
    shift
    if "$@"; then
        passed=$((passed + 1))
    else
        failed=$((failed + 1))
        echo "failed: $what; the messages: $(cat err* 2>/dev/null | head -c 900)"
    fi
}

# succeeds WHAT COMMAND...: a run that counts its own checks
succeeds() {
    local what=$1 last
    shift
    timeout 120 "$@" >out 2>err
    local status=$?
    last=$(tail -n 1 out)
    if [[ $status = 0 && $last =~ ^([0-9]+)\ passed,\ 0\ failed$ ]]; then
        passed=$((passed + BASH_REMATCH[1]))
    else
        failed=$((failed + 1))
        echo "failed: $what (status $status): $(head -c 900 out err)"
    fi
}

port() { echo $((20000 + (RANDOM * 32768 + RANDOM) % 12000)); }

# rank R N PORT ARGUMENTS...: one rank in the background, its messages in out.R and err.R
rank() {
    local r=$1 n=$2 p=$3
    shift 3
    timeout 120 "$program" --rendezvous "127.0.0.1:$p" --rank "${r%[a-z]}" --ranks "$n" "$@" >"out.$r" 2>"err.$r" \
        </dev/null &
    started+=($!)
    disown # bash shall not report how it ends
}

# begin COMMAND...: a run in the background, until all $ranks ranks have said which process they are
begin() {
    rm -f out* err*
    : >out
    timeout 120 "$@" >out 2>err </dev/null &
    started+=($!)
    disown
    for ((i = 0; i < 300; i++)); do
        [ "$(grep -c 'is process' out)" = "$ranks" ] && return
        sleep 0.1
    done
}

process() { sed -n "s/^rank $1 is process //p" out; }

# ended COUNT PART [SECONDS]: within so many seconds (30) COUNT ranks say one and the same sentence, with PART in it
ended() {
    local count=$1 part=$2 until=$((SECONDS + ${3:-30})) lines
    while [ "$(cat err* | grep -c 'error:')" -lt "$count" ] && [ $SECONDS -lt $until ]; do sleep 0.1; done
    sleep 0.2
    lines=$(cat err* | grep 'error:')
    check "$count ranks say '$part' in time" [ "$(grep -c . <<<"$lines")" = "$count" -a \
        "$(sort -u <<<"$lines" | grep -c .)" = 1 -a -n "$(grep -F -- "$part" <<<"$lines")" ]
}

# no process of the last run is left, but for those given; all are waited for up to 10 s
gone() {
    local left pid
    for ((i = 0; i < 100; i++)); do
        left=
        for pid in $(sed -n 's/^rank [0-9]* is process //p' out*); do
            [[ " $* " = *" $pid "* ]] || ! kill -0 "$pid" 2>/dev/null || left+=" $pid"
        done
        [ -z "$left" ] && break
        sleep 0.1
    done
    check "no process is left:$left" [ -z "$left" ]
}

# ---- what succeeds ----

for n in 1 2 3 4; do succeeds "$n local ranks" "$program" --ranks $n; done

by_rendezvous() { # N HOST
    local p r
    p=$(port)
    for ((r = $1 - 1; r > 0; r--)); do
        "$program" --rendezvous "$2:$p" --rank $r --ranks "$1" >"out.$r" 2>&1 &
    done
    sleep 0.3 # the others are first, and wait for rank 0
    "$program" --rendezvous "$2:$p" --rank 0 --ranks "$1"
    local status=$?
    wait
    return $status
}
export -f by_rendezvous port
export program
for n in 2 3; do succeeds "$n ranks by rendezvous" bash -c "by_rendezvous $n 127.0.0.1"; done
[ -n "$quick" ] || succeeds "2 ranks that know this machine by its name" bash -c "by_rendezvous 2 $(hostname)"

by_slurm() { # N: as srun does, all on this machine
    local r
    export SLURM_STEP_NUM_TASKS=$1 SLURM_JOB_ID=$RANDOM SLURM_STEP_ID=0 SLURM_STEP_NODELIST="localhost,other[1-3]"
    for ((r = $1 - 1; r > 0; r--)); do SLURM_PROCID=$r "$program" >"out.$r" 2>&1 & done
    SLURM_PROCID=0 "$program"
    local status=$?
    wait
    return $status
}
export -f by_slurm
succeeds "2 ranks of a Slurm step" bash -c "by_slurm 2"

with_strangers() { # connections of strangers before, a web browser's and a silent one, do not disturb
    local p status first
    p=$(port)
    "$program" --rendezvous "127.0.0.1:$p" --rank 0 --ranks 2 &
    first=$!
    sleep 0.5
    exec 8<>"/dev/tcp/127.0.0.1/$p" 9<>"/dev/tcp/127.0.0.1/$p"
    printf 'GET / HTTP/1.0\r\n\r\n' >&9
    "$program" --rendezvous "127.0.1.1:$p" --rank 1 --ranks 2
    wait $first
    status=$?
    exec 8>&- 9>&-
    return $status
}
export -f with_strangers
succeeds "strangers at the port" bash -c with_strangers

in_a_crowd() { # more connections at once than rank 0 reads at a time, behind that of rank 1
    local p status first second i fd
    p=$(port)
    "$program" --rendezvous "127.0.0.1:$p" --rank 0 --ranks 2 &
    first=$!
    sleep 0.5
    kill -STOP $first
    "$program" --rendezvous "127.0.0.1:$p" --rank 1 --ranks 2 &
    second=$!
    sleep 0.5
    for ((i = 0; i < 40; i++)); do exec {fd}<>"/dev/tcp/127.0.0.1/$p"; done
    kill -CONT $first
    wait $first
    status=$?
    wait $second && return $status
}
export -f in_a_crowd
succeeds "a crowd at the port" bash -c in_a_crowd

mpirun=
if command -v mpirun >/dev/null && grep -q libmpi < <(ldd "$program"); then
    mpirun=yes
    [ -n "$quick" ] || for n in 2 3 4; do succeeds "mpirun with $n ranks" mpirun --oversubscribe -n $n "$program"; done
else
    echo "left out: mpirun (not installed, or the program was built without MPI)"
fi

# ---- what must end a run ----

ranks=3
rounds=$([ -n "$quick" ] && echo 1 || echo 7)
for ((k = 0; k < 3 * rounds; k++)); do # at random moments
    killed=$((k % 3))
    begin "$program" --ranks 3 loop
    pid=$(process $killed)
    sleep 0.$((RANDOM % 300 + 100))
    kill -9 "$pid"
    ended 2 "rank $killed (on $(hostname), process $pid) has gone" 5
    gone
done
begin "$program" --ranks 3 wait 2
kill -9 "$(process 1)" # the others wait in a collective for rank 2
ended 2 "rank 1 (on" 5
gone

for who in 0 1; do
    rm -f out* err*
    timeout 60 "$program" --ranks 3 die $who >out 2>err
    ended 3 "rank $who (on $(hostname)): cannot write out/state.safetensors: No space left on device" 1
    check "no partial file is left" [ -z "$(ls file* 2>/dev/null)" ]
done
rm -f out* err*
timeout 60 "$program" --ranks 3 exit 1 >out 2>err
ended 2 "rank 1 (on" 1
timeout 60 "$program" --ranks 2 differ 1 >out 2>err
ended 2 "has another data than rank 0: that.bin instead of this.bin" 1
timeout 60 "$program" --ranks 2 less 1 >out 2>err
ended 2 "has another precision than rank 0: nothing instead of FP32" 1
timeout 60 "$program" --ranks 2 sizes 1 >out 2>err
ended 2 "rank 1 sends 8 bytes where rank 0 receives 4" 1

# Sentences come from one rank alone: wrong usage.
refuses() { # PART ARGUMENTS...
    local part=$1
    shift
    rm -f out* err*
    timeout 60 "$program" "$@" >out 2>err
    check "status 1 with '$part'" [ $? = 1 -a "$(grep -c error: err)" = 1 -a -n "$(grep -F -- "$part" err)" ]
}
refuses "--rank is 2 with --ranks 2" --rendezvous 127.0.0.1:1 --rank 2 --ranks 2
refuses "expected HOST:PORT" --rendezvous here --rank 1 --ranks 2
export TIKZ_ARRIVAL_SECONDS=1.5
refuses "rank 0 does not answer at 127.0.0.1:1 " --rendezvous 127.0.0.1:1 --rank 1 --ranks 2
refuses "the host 'no.such.host.invalid' is not known" --rendezvous no.such.host.invalid:9 --rank 1 --ranks 2

rm -f out* err*
p=$(port)
rank 0 4 "$p"
rank 2 4 "$p"
ended 2 "ranks 1, 3 of 4 did not arrive within 2 s"
unset TIKZ_ARRIVAL_SECONDS

rm -f out* err*
p=$(port)
rank 0 3 "$p"
rank 1 3 "$p"
sleep 0.3
rank 1b 3 "$p"
ended 3 "two processes have --rank 1" 5
rm -f out* err*
p=$(port)
rank 0 3 "$p"
sleep 0.3
rank 1 2 "$p"
ended 2 "was started with --ranks 2, rank 0 with --ranks 3" 5
rm -f out* err*
p=$(port)
rank 0 2 "$p" loop
rank 1 2 "$p" loop
sleep 1
rank 1b 2 "$p" loop
ended 1 "the run at this address has all its 2 ranks" 5
check "the others go on" [ "$(cat out.0 out.1 | grep -c 'is process')" = 2 ]
kill -9 "$(sed -n 's/.*process //p' out.1)"
rm -f err.1b
ended 1 "has gone" 5
gone

export TIKZ_SILENCE_SECONDS=2
for stopped in 1 0; do
    begin "$program" --ranks 3 loop
    pid=$(process $stopped)
    kill -STOP "$pid"
    ended 2 "rank $stopped (on $(hostname), process $pid) has given no sign of life for 2 s" 10
    kill -CONT "$pid" 2>/dev/null
    gone
done
begin "$program" --ranks 3 loop
pids=$(process '[0-9]*')
kill -STOP $pids # as Ctrl-Z does
sleep 4
kill -CONT $pids
sleep 1.5
check "all go on after all were stopped" kill -0 $pids 2>/dev/null
kill -9 "$(process 0)" 2>/dev/null
ended 2 "rank 0 (on" 5
gone
unset TIKZ_SILENCE_SECONDS

if [ -n "$mpirun" ]; then
    ranks=3
    for killed in 0 1; do
        begin mpirun --oversubscribe -n 3 "$program" loop
        pid=$(process $killed)
        kill -9 "$pid"
        ended 2 "rank $killed (on $(hostname), process $pid) has gone" 5
        gone
    done
    rm -f out* err*
    timeout 60 mpirun --oversubscribe -n 3 "$program" die 2 >out 2>err
    ended 3 "rank 2 (on $(hostname)): cannot write out/state.safetensors: No space left on device" 1
    check "no partial file is left" [ -z "$(ls file* 2>/dev/null)" ]
fi

# ---- two machines ----

# Two network namespaces with addresses of their own, joined by a cable.
two_machines() {
    local a=tikz-a-$$ b=tikz-b-$$
    [ "$(id -u)" = 0 ] && command -v ip >/dev/null || return
    ip netns add "$a" 2>/dev/null && spaces+=("$a") && ip netns add "$b" 2>/dev/null && spaces+=("$b") &&
        ip -n "$a" link add cable type veth peer name cable netns "$b" 2>/dev/null &&
        ip -n "$a" addr add 10.77.0.1/24 dev cable && ip -n "$b" addr add 10.77.0.2/24 dev cable &&
        ip -n "$a" link set cable up && ip -n "$b" link set cable up &&
        ip -n "$a" link set lo up && ip -n "$b" link set lo up
}
on() { # SPACE RANK RANKS ARGUMENTS...
    local space=$1 r=$2 n=$3
    shift 3
    timeout 120 ip netns exec "$space" "$program" --rendezvous "10.77.0.1:29600" --rank "$r" --ranks "$n" "$@" \
        >"out.$r" 2>"err.$r" &
    pids[r]=$!
    started+=($!)
}
if [ -z "$quick" ] && two_machines; then
    rm -f out* err*
    on "${spaces[0]}" 0 3
    on "${spaces[1]}" 1 3
    on "${spaces[0]}" 2 3
    wait "${pids[@]}"
    [[ $(tail -n 1 out.0) =~ ^([0-9]+)\ passed,\ 0\ failed$ ]]
    check "three ranks on two machines: $(tail -n 3 out.0)" [ -n "${BASH_REMATCH[1]}" ]
    passed=$((passed + ${BASH_REMATCH[1]:-0}))
    rm -f out* err*
    on "${spaces[0]}" 0 3 loop
    on "${spaces[1]}" 1 3 loop
    on "${spaces[0]}" 2 3 loop
    for ((i = 0; i < 100; i++)); do
        [ "$(cat out.* | grep -c 'is process')" = 3 ] && break
        sleep 0.1
    done
    ip -n "${spaces[1]}" link set cable down
    since=$SECONDS
    for ((i = 0; i < 300; i++)); do
        [ "$(cat err.* | grep -c error:)" = 3 ] && break
        sleep 0.1
    done
    check "all have ended within 30 s of the cut ($((SECONDS - since)) s)" [ $((SECONDS - since)) -lt 30 ]
    silent='(on .*) has given no sign of life for 12 s'
    check "the two that see each other name the one cut off" \
        [ "$(cat err.0 err.2 | grep -c "error: rank 1 $silent")" = 2 ]
    check "the one cut off names rank 0" grep -q "error: rank 0 $silent" err.1
    gone
elif [ -z "$quick" ]; then
    echo "left out: two machines in network namespaces (needs root and iproute2)"
fi

echo "$passed passed, $failed failed"
[ $failed = 0 ]
