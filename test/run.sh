#!/usr/bin/env bash
# Runs test programs one after another, shows what fails, and ends with the sum: "N passed, M failed".
#
#   test/run.sh COMMAND...      each COMMAND prints its own "N passed, M failed" as its last line
#
# A command that ends without that line, or with another status than 0 while it counts no failure, counts as one. Of what
# passes, only the lines "not tested here: ..." are shown; what failed is named again at the end. VERBOSE=1 also says how
# long each command took.
set -u
passed=0 failed=0 names=()
for command in "$@"; do
    printf '== %s\n' "$command"
    begin=$SECONDS
    output=$(bash -c "$command" 2>&1)
    status=$?
    last=$(printf '%s\n' "$output" | tail -n 1)
    if [[ $last =~ ([0-9]+)\ passed,\ ([0-9]+)\ failed ]]; then
        good=${BASH_REMATCH[1]} bad=${BASH_REMATCH[2]}
        [ "$status" -ne 0 ] && [ "$bad" -eq 0 ] && bad=1
    else
        good=0 bad=1
    fi
    if [ "$bad" -gt 0 ]; then
        printf '%s\n(exit status %d)\n' "$output" "$status"
        names+=("$command" "$(printf '%s\n' "$output" | grep -m 3 -E '^(failed:|== )|FAIL')")
    else
        printf '%s\n' "$output" | grep '^not tested'
        printf '%s\n' "$last${VERBOSE:+ ($((SECONDS - begin)) s)}"
    fi
    passed=$((passed + good)) failed=$((failed + bad))
done
[ "$failed" -gt 0 ] && printf 'failed in %s\n%s\n' "${names[@]}"
echo "$passed passed, $failed failed"
[ "$failed" -eq 0 ]
