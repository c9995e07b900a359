#!/bin/bash
# What ships must work: the starter teacher and student on the test figures, a short distillation beats the same training without a
# teacher, and, where TeX is installed, what infer writes compiles and draws the image.
#
#   test/test_starter.sh build/BF16      the argument is the folder with the programs
programs=$(cd "${1:-build/BF16}" && pwd) || exit 1
cd "$(dirname "$0")/.." || exit 1
tmp=$(mktemp -d "${TMPDIR:-/tmp}/tikz-starter-XXXXXX") || exit 1
trap 'rm -rf "$tmp"' EXIT
export OMP_WAIT_POLICY=passive LC_ALL=C
starter=dev/starter
passed=0 failed=0

check() { # WHAT CONDITION...
    local what=$1
    shift
    if "$@"; then passed=$((passed + 1)); else
        failed=$((failed + 1))
        echo "failed: $what"
        tail -n 5 "$tmp/err" 2>/dev/null
    fi
}

number() { sed -n "s/.*\"$2\":\([-0-9.e]*\).*/\1/p" "$1" | head -n 1; } # FILE KEY: its first value

at_least() { awk -v a="$1" -v b="$2" 'BEGIN { exit !(a != "" && b != "" && a + 0 >= b + 0) }'; }

# The shipped models write most unseen test figures letter for letter.
for model in teacher:0.85 student:0.35; do
    name=${model%:*} floor=${model#*:}
    "$programs/eval" --model $starter/$name.safetensors --data $starter/test.bin --json "$tmp/$name.json" \
        >"$tmp/out" 2>"$tmp/err"
    check "the $name writes at least $floor of the test figures, found $(number "$tmp/$name.json" exact)" \
        at_least "$(number "$tmp/$name.json" exact)" "$floor"
done

# Three hundred steps with the teacher end nearer to the texts than as many without, from the same start and on the same
# data, and nearer to the teacher.
same=(--steps 300 --eval-every 300)
"$programs/train_distill" "${same[@]}" --out "$tmp/with" >"$tmp/out" 2>"$tmp/err"
"$programs/train_distill" "${same[@]}" --teacher none --init $starter/teacher.safetensors --out "$tmp/without" \
    >"$tmp/out" 2>"$tmp/err"
for run in with without; do
    "$programs/eval" --model "$tmp/$run/student.safetensors" --teacher $starter/teacher.safetensors \
        --data $starter/val.bin --json "$tmp/$run.json" >"$tmp/out" 2>"$tmp/err"
done
for key in ce soft; do
    with=$(number "$tmp/with.json" $key) without=$(number "$tmp/without.json" $key)
    check "distilling beats no teacher: $key $with with the teacher, $without without" at_least "$without" "$with"
done
with=$(number "$tmp/with.json" exact) without=$(number "$tmp/without.json" exact)
check "distilling beats no teacher: exact match $with with the teacher, $without without" at_least "$with" "$without"

"$programs/infer" --model $starter/student.safetensors $starter/example.png >"$tmp/example.tex" 2>"$tmp/err"
check "infer writes the example's program as it ships" cmp -s "$tmp/example.tex" $starter/example.tex

if command -v pdflatex >/dev/null && command -v pdftoppm >/dev/null; then
    (cd "$tmp" && pdflatex -interaction=batchmode -halt-on-error example.tex >/dev/null 2>err)
    check "the example's program compiles" [ -s "$tmp/example.pdf" ]
    "$programs/eval" --model $starter/student.safetensors --data $starter/test.bin --samples 20 --texts "$tmp/texts" \
        >"$tmp/out" 2>"$tmp/err"
    compiled=$(dev/starter/score.py --all "$tmp/texts" | sed -n 's/ of 20 programs .* compile$//p')
    check "of 20 programs at least 18 compile, found $compiled" at_least "$compiled" 18
else
    echo "pdflatex or pdftoppm is not installed: that programs compile was not tested"
fi
echo "$passed passed, $failed failed"
[ "$failed" -eq 0 ]
