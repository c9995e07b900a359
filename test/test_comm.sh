#!/bin/bash
# dist/ with real processes: every check of test_comm.c under mpirun, and what must end a run.
#
#   test/test_comm.sh BUILD [GROUP...]      BUILD: the folder with test_comm
#
#   succeeding   all checks on 1 to 4 ranks of the CPU        sanitized    on 3 ranks, in a build with a sanitizer
#   quick        all checks on 1 and 3 ranks                  emulated     on emulated GPUs, with and without NCCL
#   failing      kills, errors, ranks that differ             without_mpi  in a build with MPI=0
#
# Default: succeeding failing. KILLS=N: how many ranks are killed at random moments (21). Where there is no mpirun only
# the checks of one process are made, and that is said.
. "$(dirname "$0")/check.sh"
program=$(cd "${1:-build/BF16}" && pwd)/test_comm || exit 1
shift
begin_test comm
cd "$tmp" || exit 1
export TEST_FOLDER=$tmp OMP_NUM_THREADS=1
. "$root/test/mpi.sh"
host=$(hostname)
RANDOM=${SEED:-6}

# ---- what succeeds ----

succeeding() {
    counts "a process alone" "$program" --engine none
    have_mpi "$program" || return
    local n
    for n in 1 2 3 4; do counts "$n ranks" "${mpirun[@]}" -n $n "$program" --engine "$(engine_of $n)"; done
}

quick() {
    counts "a process alone" "$program" --engine none
    have_mpi "$program" && counts "3 ranks" "${mpirun[@]}" -n 3 "$program" --engine MPI
}

engine_of() { if [ "$1" = 1 ]; then echo none; else echo MPI; fi; }

# Open MPI keeps memory to its end, and its own threads are unknown to ThreadSanitizer.
sanitized() {
    export ASAN_OPTIONS=detect_leaks=0 TSAN_OPTIONS="suppressions=$root/test/tsan.txt ignore_noninstrumented_modules=1"
    have_mpi "$program" && counts "3 ranks with a sanitizer" "${mpirun[@]}" -n 3 "$program" --engine MPI
}

emulated() {
    counts "a process alone, with NCCL for one GPU" "$program" --device cuda
    have_mpi "$program" || return
    counts "2 ranks share a GPU: by way of the host" "${mpirun[@]}" -n 2 "$program" --device cuda --engine MPI
    export EMULATION_DEVICES=3
    counts "3 ranks, two of them on one GPU" "${mpirun[@]}" -n 1 "$program" --device cuda:0 --engine MPI : \
        -n 2 "$program" --device cuda:1 --engine MPI
    counts "2 ranks with a GPU each" "${mpirun[@]}" -n 2 "$program" --device cuda:rank --engine NCCL
    counts "3 ranks with a GPU each" "${mpirun[@]}" -n 3 "$program" --device cuda:rank --engine NCCL
}

without_mpi() {
    counts "a process alone, without MPI" "$program" --engine none
    command -v mpirun >/dev/null || return
    run "${mpirun[@]}" -n 2 "$program"
    check "a build without MPI says how to get it" eval 'grep -F "this is one of 2 processes, but the program was built without MPI" err | grep -qF "install Open MPI (scripts/deps.sh mpi), run make again, and start with mpirun"'
    check "a build without MPI under mpirun fails" [ $status = 1 ]
}

# ---- what must end a run ----

all_begun() { [ "$(grep -c 'is process' out)" = 3 ]; } 2>/dev/null
process() { sed -n "s/^rank $1 is process //p" out; }

# Starts three ranks in the background, until each has said which process it is.
start() { # ARGUMENTS...
    last=("${mpirun_loud[@]}" -n 3 "$program" "$@")
    : >out
    timeout "$TIME_LIMIT" "${last[@]}" >out 2>err </dev/null &
    launcher=$!
    wait_for $launcher all_begun
}

# The launched run ends within so many seconds, with another status than 0, and none of its ranks is left.
ends() { # WHAT SECONDS
    local begin=$SECONDS
    while kill -0 $launcher && [ $((SECONDS - begin)) -lt 40 ]; do pause 0.02; done 2>/dev/null
    check "$1: the run ends within $2 s ($((SECONDS - begin)) s)" [ $((SECONDS - begin)) -le "$2" ]
    wait $launcher
    status=$?
    check "$1: the status is not 0" [ $status != 0 ]
    while ! none_left && [ $((SECONDS - begin)) -lt 40 ]; do pause 0.02; done # a killed rank may still be leaving
    check "$1: no rank is left" [ $((SECONDS - begin)) -le "$2" ]
}

none_left() { # a defunct process is gone, whether or not somebody has asked for its status
    local pid
    for pid in $(process '[0-9]*'); do ! grep -q '^State:.[^Z]' "/proc/$pid/status" 2>/dev/null || return 1; done
}

killed() { # RANK ARGUMENTS...
    local rank=$1 pid
    shift
    start "$@"
    pid=$(process "$rank")
    pause 0.$((RANDOM % 300 + 100))
    kill -9 "$pid"
    ends "rank $rank killed" 30
    check "mpirun says which rank was killed" grep -q "rank $rank with PID .* exited on signal 9 (Killed)" err
}

# Three ranks of which one fails, with one sentence in all.
one_fails() { # PART ARGUMENTS...
    local part=$1
    shift
    run "${mpirun[@]}" -n 3 "$program" "$@"
    check "status 1 and once: $part" [ $status = 1 -a "$(grep -c error: err)" = 1 -a -n "$(grep -F -- "$part" err)" ]
}

failing() {
    have_mpi "$program" || return
    local k who pids
    for ((k = 0; k < ${KILLS:-21}; k++)); do killed $((k % 3)) loop; done
    killed 1 wait 2 # the others wait in a collective for rank 2

    for who in 0 1 2; do
        one_fails "error: rank $who of 3 (on $host): cannot write out/state.safetensors: No space left" die $who
        check "rank $who fails: its partial file is gone" [ ! -e file.$who.partial ]
        check "rank $who fails: no file of its name" [ ! -e file.$who ]
        rm -f file.*
    done
    run "${mpirun_loud[@]}" -n 3 "$program" exit 1
    check "a rank that leaves early ends the run" [ $status != 0 -a $status != 124 ]
    one_fails "rank 1 of 3 (on $host): this rank has another data than rank 0: that.bin instead of this.bin" differ 1
    one_fails "rank 2 of 3 (on $host): this rank has another build than rank 0" less 2

    start loop
    pids=$(process '[0-9]*')
    kill -STOP $pids # as Ctrl-Z does
    pause 1.5
    kill -CONT $pids
    pause 1
    check "all go on after all were stopped" kill -0 $pids
    kill -TERM $launcher
    ends "mpirun ended" 30
}

groups=("$@")
run_groups "${groups[@]:-succeeding}" $([ ${#groups[@]} -gt 0 ] || echo failing)
end_test
