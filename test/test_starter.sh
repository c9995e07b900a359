#!/bin/bash
# What ships must work: the starter teacher and student on the test figures; a short distillation beats the same training
# without a teacher; and, where TeX is installed, what infer writes compiles.
#
#   test/test_starter.sh build/BF16 [quick]      the folder with the programs; quick: 40 figures, and no distillation
. "$(dirname "$0")/check.sh"
programs=$(cd "${1:-build/BF16}" && pwd) || exit 1
cd "$root" || exit 1
begin_test starter
TIME_LIMIT=900
starter=dev/starter quick=${2:-}

number() { sed -n "s/.*\"$2\":\([-0-9.e]*\).*/\1/p" "$1" | head -n 1; } # FILE KEY: its first value

# The shipped models write most unseen test figures letter for letter.
for model in teacher:0.85 student:0.35; do
    name=${model%:*} floor=${model#*:}
    run "$programs/eval" --model $starter/$name.safetensors --data $starter/test.bin --json "$tmp/$name.json" ${quick:+--samples 40}
    check "the $name writes at least $floor of the test figures, found $(number "$tmp/$name.json" exact)" \
        at_least "$(number "$tmp/$name.json" exact)" "$floor"
done

# Three hundred steps with the teacher end nearer to the texts than as many without, from the same start and on the same
# data, and nearer to the teacher.
distilling() {
    both=(--steps 300 --eval-every 300)
    run "$programs/train_distill" "${both[@]}" --out "$tmp/with"
    run "$programs/train_distill" "${both[@]}" --teacher none --init $starter/teacher.safetensors --out "$tmp/without"
    for run in with without; do
        run "$programs/eval" --model "$tmp/$run/student.safetensors" --teacher $starter/teacher.safetensors \
            --data $starter/val.bin --json "$tmp/$run.json"
    done
    for key in ce soft; do
        with=$(number "$tmp/with.json" $key) without=$(number "$tmp/without.json" $key)
        check "distilling beats no teacher: $key $with with the teacher, $without without" at_least "$without" "$with"
    done
    with=$(number "$tmp/with.json" exact) without=$(number "$tmp/without.json" exact)
    check "distilling beats no teacher: exact match $with with the teacher, $without without" at_least "$with" "$without"
}
[ "$quick" ] || distilling

run "$programs/infer" --model $starter/student.safetensors $starter/example.png
cp "$tmp/out" "$tmp/example.tex"
check "infer writes the example's program as it ships" same "$tmp/example.tex" $starter/example.tex

if command -v pdflatex >/dev/null && command -v pdftoppm >/dev/null; then
    (cd "$tmp" && pdflatex -interaction=batchmode -halt-on-error example.tex >/dev/null 2>err)
    check "the example's program compiles" [ -s "$tmp/example.pdf" ]
    run "$programs/eval" --model $starter/student.safetensors --data $starter/test.bin --samples 20 --texts "$tmp/texts"
    compiled=$(dev/starter/score.py --all "$tmp/texts" | sed -n 's/ of 20 programs .* compile$//p')
    check "of 20 programs at least 18 compile, found $compiled" at_least "$compiled" 18
    counts "hostile documents" test/test_tex.py
else
    echo "not tested here: that programs compile (no pdflatex or pdftoppm; scripts/deps.sh tex)"
fi
end_test
