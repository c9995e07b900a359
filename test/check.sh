# What the shell tests share: a temporary folder, commands that run under a time limit, checks that count, and the last
# line "N passed, M failed". A test sources this file and calls begin_test first and end_test last:
#
#   . "$(dirname "$0")/check.sh"
#   begin_test NAME
#   succeeds ./infer --model m.safetensors image.png
#   refuses 1 "cannot read" ./infer --model none.safetensors
#   check "the document begins" grep -q documentclass "$tmp/out"
#   end_test
#
# `run` leaves the command in `last`, its exit status in `status` and what it said in $tmp/out and $tmp/err. A check is
# printed only when it fails, with the last command. TIME_LIMIT is in seconds.
# shellcheck shell=bash disable=SC2034

root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
passed=0 failed=0 last=() status=0 TIME_LIMIT=${TIME_LIMIT:-120}

# begin_test NAME: the temporary folder `tmp`, which goes when the test ends, whatever ends it
begin_test() {
    tmp=$(mktemp -d "${TMPDIR:-/tmp}/tikz-$1-XXXXXX") || exit 1
    # Only in the test itself: bash also runs this in a subshell that a signal reaches early.
    trap '[ $BASHPID = $$ ] && { umount "$tmp/small" 2>/dev/null; rm -rf --one-file-system "$tmp"; }' EXIT
    mkfifo "$tmp/clock" && exec 9<>"$tmp/clock" # never written to; `pause` waits for it
    : >"$tmp/err"
    export OMP_WAIT_POLICY=passive LC_ALL=C # threads that wait leave the processor to others
}

# run_groups GROUP...: these functions, or those of GROUPS_TO_RUN; VERBOSE=1 says how long each took
run_groups() {
    local group begin
    for group in ${GROUPS_TO_RUN:-"$@"}; do
        begin=$SECONDS
        $group
        [ -n "${VERBOSE:-}" ] && echo "$group: $((SECONDS - begin)) s" >&2
    done
}

end_test() {
    echo "$passed passed, $failed failed"
    [ "$failed" -eq 0 ]
    exit
}

# ---- checks ----

pass() { passed=$((passed + 1)); }

fail() { # WHAT
    failed=$((failed + 1))
    echo "failed: $1"
    describe_last | sed 's/^/    /'
}

# What `fail` adds: the last command and what it said. A test may define its own.
describe_last() {
    local command="${last[*]}"
    echo "command: ${command//$tmp\//}"
    echo "status $status, stderr: $(tail -c 900 "$tmp/err" 2>/dev/null)"
}

# check WHAT CONDITION...: a command that must succeed
check() {
    local what=$1
    shift
    if "$@"; then pass; else fail "$what"; fi
}

# run COMMAND...: at most TIME_LIMIT seconds
run() {
    last=("$@")
    timeout --kill-after=20 "$TIME_LIMIT" "$@" >"$tmp/out" 2>"$tmp/err" </dev/null
    status=$?
}

succeeds() { # COMMAND...
    run "$@"
    check "ends with status 0" [ $status = 0 ]
}

# The last command failed as it should: exactly one line "NAME: error: ...", which comes last and contains PART.
one_sentence() { # PART
    [ "$(grep -c 'error:' "$tmp/err")" = 1 ] && [[ $(tail -n 1 "$tmp/err") == "${last[0]##*/}: error: "*"$1"* ]]
}

refuses() { # STATUS PART COMMAND...
    local expected=$1 part=$2
    shift 2
    run "$@"
    if [ $status != "$expected" ]; then
        fail "refused with status $expected"
    else
        check "one sentence with '$part'" one_sentence "$part"
    fi
}

# A damaged file may be noticed or not, but the program never crashes and never says more than a sentence.
survives() { # COMMAND...
    run "$@"
    case $status in
    0) pass ;;
    1) check "one sentence" one_sentence "" ;;
    *) fail "survives damage" ;;
    esac
}

# counts WHAT COMMAND...: a test program, whose own checks are added
counts() {
    local what=$1 line
    shift
    run "$@"
    line=$(tail -n 1 "$tmp/out")
    if [[ $status = 0 && $line =~ ^([0-9]+)\ passed,\ 0\ failed$ && ${BASH_REMATCH[1]} -gt 0 ]]; then
        passed=$((passed + BASH_REMATCH[1]))
    else
        fail "$what: $(grep -v '^[0-9]* passed' "$tmp/out" | head -c 900) $line"
    fi
}

# ---- conditions ----

same() { cmp -s "$1" "$2"; }
differ() { ! cmp -s "$1" "$2"; }
near() { awk -v a="$1" -v b="$2" -v e="$3" 'BEGIN { exit !(a != "" && b != "" && a - b <= e && b - a <= e) }'; } # |a - b| <= e
below() { awk -v a="$1" -v b="$2" 'BEGIN { exit !(a != "" && b != "" && a + 0 < b + 0) }'; }
at_least() { awk -v a="$1" -v b="$2" 'BEGIN { exit !(a != "" && b != "" && a + 0 >= b + 0) }'; }
no_partial() { [ -z "$(find "${1:-.}" -name '*.partial')" ]; } # [FOLDER]
has_lines() { # FILE N
    local lines
    mapfile -t lines <"$1" && [ ${#lines[@]} -ge "$2" ]
} 2>/dev/null

# What a run in the folder $1 logged, without how fast it was.
numbers() { sed -E 's/,"(tokens_per_second|peak_share|sampling|comm|time)":[^,}]*//g' "$1/log.jsonl"; }
same_log() { [ -s "$1/log.jsonl" ] && [ "$(numbers "$1")" = "$(numbers "$2")" ]; } # A B

# ---- waiting ----

pause() { read -rt "$1" -u 9; } # SECONDS, without starting a process
wait_for() { # PROCESS COMMAND...: until it succeeds or the process ends, at most 60 s; starts none, to be in time
    local begin=$SECONDS process=$1
    shift
    until "$@"; do
        [ $((SECONDS - begin)) -lt 60 ] && kill -0 "$process" 2>/dev/null || return 1
        pause 0.002
    done
}
