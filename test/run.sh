#!/usr/bin/env bash
# Runs test programs, shows what fails, and ends with the sum: "N passed, M failed".
#
#   test/run.sh [-j N] COMMAND... [-j N COMMAND...]     each COMMAND prints its own "N passed, M failed" as its last line
#
# -j N runs the commands after it N at a time (1 without it); their results are shown in the order of the commands.
#
# A command that ends without that line, or with another status than 0 while it counts no failure, counts as one. Of what
# passes, only the lines "not tested here: ..." are shown; what failed is named again at the end. VERBOSE=1 also says how
# long each command took.
set -u
passed=0 failed=0 names=() jobs=1 group=()
results=$(mktemp -d) || exit 1
trap 'rm -rf "$results"' EXIT
set -m # each command in a process group of its own, so that all of it can be ended
trap 'for pid in $(jobs -p); do kill -- "-$pid"; done 2>/dev/null; exit 130' INT TERM

run_one() { # NUMBER COMMAND: leaves output, status and seconds in files of that number
    local begin=$SECONDS
    bash -c "$2" >"$results/$1.output" 2>&1 </dev/null
    printf '%d %d\n' $? $((SECONDS - begin)) >"$results/$1.part"
    mv "$results/$1.part" "$results/$1.status"
}

show() { # NUMBER COMMAND
    local output status=1 seconds=0 last good=0 bad=1
    output=$(cat "$results/$1.output")
    read -r status seconds <"$results/$1.status"
    [ "$jobs" = 1 ] || printf '== %s\n' "$2"
    last=$(printf '%s\n' "$output" | tail -n 1)
    if [[ $last =~ ([0-9]+)\ passed,\ ([0-9]+)\ failed ]]; then
        good=${BASH_REMATCH[1]} bad=${BASH_REMATCH[2]}
        [ "$status" -ne 0 ] && [ "$bad" -eq 0 ] && bad=1
    fi
    if [ "$bad" -gt 0 ]; then
        printf '%s\n(exit status %d)\n' "$output" "$status"
        names+=("$2" "$(printf '%s\n' "$output" | grep -m 3 -E '^(failed:|== )|FAIL')")
    else
        printf '%s\n' "$output" | grep '^not tested'
        printf '%s\n' "$last${VERBOSE:+ ($seconds s)}"
    fi
    passed=$((passed + good)) failed=$((failed + bad))
    rm -f "$results/$1".*
}

run_group() { # runs the commands of $group, $jobs at a time
    local next=0 shown=0 running=0
    while [ $shown -lt ${#group[@]} ]; do
        while [ $next -lt ${#group[@]} ] && [ $running -lt "$jobs" ]; do
            [ "$jobs" -gt 1 ] || printf '== %s\n' "${group[$next]}"
            run_one $next "${group[$next]}" &
            next=$((next + 1)) running=$((running + 1))
        done
        wait -n
        running=$((running - 1))
        while [ $shown -lt $next ] && { [ -e "$results/$shown.status" ] || [ $running = 0 ]; }; do
            show $shown "${group[$shown]}"
            shown=$((shown + 1))
        done
    done
    group=()
}

while [ $# -gt 0 ]; do
    if [ "$1" = -j ]; then
        run_group
        [[ $2 =~ ^[1-9][0-9]*$ ]] || { echo "run.sh: -j takes a number of commands, not '$2'" >&2; exit 2; }
        jobs=$2
        shift 2
        # Tests share the processors: a thread that waits leaves its own to others.
        [ "$jobs" -gt 1 ] && export OMP_WAIT_POLICY=passive || unset OMP_WAIT_POLICY
    else
        group+=("$1")
        shift
    fi
done
run_group
[ "$failed" -gt 0 ] && printf 'failed in %s\n%s\n' "${names[@]}"
echo "$passed passed, $failed failed"
[ "$failed" -eq 0 ]
