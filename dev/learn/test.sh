#!/usr/bin/env bash
# The lessons on the emulated GPU, at sizes that take a second, and their plot. Needs a build with CUDA=emulated.
#
#   dev/learn/test.sh BUILD LESSON...       ends with "N passed, M failed"
set -u
build=$1
shift
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
passed=0 failed=0
pass() { passed=$((passed + 1)); }
fail() {
    failed=$((failed + 1))
    echo "FAIL $*"
}

lesson() { # NAME ARGUMENTS...: its versions give correct results; counts them
    local output last
    output=$("$build/$1" "${@:2}" 2>&1)
    last=${output##*$'\n'}
    if [[ $last =~ ^([0-9]+)\ passed,\ ([0-9]+)\ failed$ ]]; then
        passed=$((passed + BASH_REMATCH[1])) failed=$((failed + BASH_REMATCH[2]))
        [ "${BASH_REMATCH[2]}" -eq 0 ] || printf '%s\n' "$output"
    else
        fail "$*: $output"
    fi
}

for name in "$@"; do
    lesson "$name" --json "$work/$name.json"
    if [ "$name" = attention ]; then
        lesson "$name" --rows 70 --width 128
        lesson "$name" --rows 7 --width 40 # for the naive and the shipped version alone
    else
        EMULATION_CAPABILITY=90 EMULATION_SHARED=20000 lesson "$name" --rows 2 --width 2048 # long rows, in clusters
    fi
    if python3 dev/learn/plot.py "$work/$name.json" "$work/$name.svg" 2>"$work/error"; then
        fail "$name: plot.py draws figures that were not timed"
    elif grep -q 'not timed' "$work/error" && [ ! -e "$work/$name.svg" ]; then pass; else
        fail "$name: $(cat "$work/error")"
    fi
    # the plot itself, of made-up times that this test deletes again
    sed 's/"ms":null/"ms":2.5/; s/"floor_ms":null/"floor_ms":2/; s/"\(bandwidth\|matmul\)":null/"\1":1e9/' \
        "$work/$name.json" >"$work/made-up.json"
    if python3 dev/learn/plot.py "$work/made-up.json" "$work/made-up.svg" &&
        python3 -c "import sys, xml.dom.minidom as m; d = m.parse(sys.argv[1]); bars = len(d.getElementsByTagName('title'))
sys.exit(bars != int(sys.argv[2]))" "$work/made-up.svg" "$(wc -l <"$work/$name.json")"; then pass; else
        fail "$name: no plot with a bar for each version"
    fi
done
"$build/$1" --version none 2>&1 | grep -q "no version 'none'" && pass || fail "an unknown version"
echo "$passed passed, $failed failed"
[ $failed -eq 0 ]
