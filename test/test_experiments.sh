#!/bin/bash
# runs/experiment.sh, runs/compare.sh and runs/student.sh: every experiment of configs/ runs, with few steps of a small student;
# what is finished is not run again, what was interrupted goes on; and the comparison ends in tables and reports.
#
#   test/test_experiments.sh build/BF16      the folder with train_distill, infer, eval and quantize
#
# GROUPS_TO_RUN names groups, VERBOSE=1 times them. Needs what `make` needs, and TeX.
. "$(dirname "$0")/check.sh"
programs=$(cd "${1:-build/BF16}" && pwd) || exit 1
begin_test experiments
cd "$tmp" || exit 1
. "$root/test/training.sh"
command -v pdflatex >/dev/null || {
    echo "not tested here: there is no TeX, which the experiments compile with (scripts/deps.sh tex)"
    echo "0 passed, 0 failed"
    exit 0
}
export PROGRAMS=$programs EXPERIMENTS=$tmp/experiments STEPS=1 STUDENT=base,vision.layers=1,lm.layers=1
export DATA=$tmp/train.bin VAL=$tmp/val.bin TEST=$tmp/two.bin OMP_NUM_THREADS=${OMP_NUM_THREADS:-2}
TIME_LIMIT=900
experiment=$root/runs/experiment.sh compare=$root/runs/compare.sh
"$damage" part val.bin two.bin 0 2 # untrained students write what TeX takes long to refuse

every_experiment() {
    local name config
    for config in "$root"/configs/*.conf; do
        name=$(basename -s .conf "$config")
        succeeds "$experiment" "$name" 1
        check "$name has trained for a step" grep -q '"step":1,' "$EXPERIMENTS/$name-1/log.jsonl"
    done
    check "the teacher's programs are data" [ -s "$EXPERIMENTS/beam.bin" ]
    check "adapters are what lora makes" [ -s "$EXPERIMENTS/lora-1/adapter.safetensors" ]
    check "a file says what its name says: GKD learns from own samples" grep -q '^on-policy = 0.5' "$EXPERIMENTS/gkd-1/options.txt"
}

again() {
    succeeds "$experiment" original 1
    cp "$EXPERIMENTS/original-1/log.jsonl" before
    succeeds "$experiment" original 1
    check "a finished experiment is not run again" eval '[ ! -s err ] && same before "$EXPERIMENTS/original-1/log.jsonl"'
    cp -r "$EXPERIMENTS/original-1" "$EXPERIMENTS/original-2"
    succeeds env STEPS=2 "$experiment" original 2
    check "an unfinished one goes on" eval 'grep -q "\"step\":2," "$EXPERIMENTS/original-2/log.jsonl" &&
        [ "$(grep -c "\"step\":1," "$EXPERIMENTS/original-2/log.jsonl")" -ge 1 ]'
    check "its time is that of both parts" below "$(cat "$EXPERIMENTS/original-1/seconds")" "$(cat "$EXPERIMENTS/original-2/seconds")"
    rm "$EXPERIMENTS/original-2/seconds" # as after a kill
    succeeds env STEPS=3 "$experiment" original 2
    check "one that was killed goes on, too" grep -q '"step":3,' "$EXPERIMENTS/original-2/log.jsonl"
    run "$experiment" nothing
    check "an experiment that there is not" eval '[ $status = 2 ] && grep -q "NAME is one of beamsearch" err'
    run "$compare" original nothing
    check "... in a comparison" eval '[ $status = 2 ] && grep -q "there is no configs/nothing.conf" err'
    rm -rf "$EXPERIMENTS/original-2"
    run env EXPERIMENTS=$tmp/baseless DATA=$tmp/nothing.bin "$experiment" lora 1
    check "an experiment whose beginning could not be trained does not begin" eval \
        '[ $status = 1 ] && [ "$(grep -c "error:" err)" = 1 ] && [ ! -e baseless/lora-1 ]'
    run "$experiment" original 3 --lr x
    check "an option that train_distill refuses" eval '[ $status = 1 ] && grep -q "train_distill: error" err'
}

comparing() {
    succeeds env SEEDS="1 2" "$compare" lora
    check "a table for equal steps" [ "$(grep -c '^| [a-z_]* | 1 (0) | [0-9]* ([0-9]*) | [0-9.]* ([0-9.]*) | [0-9.]* ([0-9.]*) | [0-9.]* ([0-9.]*) |$' \
        "$EXPERIMENTS/steps.md")" = 1 ]
    check "a table for equal time" [ "$(grep -c '^| [a-z_]* | [1-9]' "$EXPERIMENTS/time.md")" = 1 ]
    check "both are printed" eval '[ "$(grep -c "^| lora " out)" = 2 ]'
    check "the mean over the seeds" near \
        "$(awk -F'[|( ]+' '/lora/ { print $7 }' "$EXPERIMENTS/steps.md")" \
        "$(cat "$EXPERIMENTS"/steps-[12]/metrics.csv | awk -F, '$1 == "ce" && $2 == "lora" { s += $3 } END { print s / 2 }')" 0.0001
    succeeds env SEEDS=1 LONG=original EXPERIMENTS=$tmp/long "$compare" original target_soft
    check "a long one is not compared for equal steps" [ "$(grep -c '^| [a-z_]* | 1 ' long/steps.md)" = 1 ]
    check "but for equal time, after a trial" eval '[ -s long/original-1-trial/seconds ] && grep -q "^| original | [1-9]" long/time.md'
    run env SEEDS=1 STEPS=2 "$compare" lora
    check "a comparison keeps to its steps" eval '[ $status = 2 ] && grep -q "has experiments of 1 steps, and STEPS is 2" err'
    check "a report for each seed" [ -s "$EXPERIMENTS/steps-2/index.html" -a -s "$EXPERIMENTS/time-1/index.html" ]
}

# Its figures are made by dev/starter/render.py; here they are there already.
long_student() {
    local student=$root/runs/student.sh stage
    export STUDENT_OUT=$tmp/student TRUNK=2 COOL=1 BATCH=4
    mkdir student
    "$damage" part train.bin student/train.bin 0 8
    touch student/generate && chmod +x student/generate
    for stage in data cache train score; do succeeds "$student" "$stage"; done
    check "a trunk, and from its end the cooling" eval 'grep -q "\"step\":2," student/trunk/log.jsonl &&
        grep -q "^student = .*student/trunk/student.safetensors" student/student/options.txt'
    check "a report" [ -s student/report/index.html ]
    cp student/student/log.jsonl before
    echo '{"step":3,"loss":1}' >>student/trunk/log.jsonl # as where the checkpoint of a logged step could not be saved
    succeeds env TRUNK=3 "$student" train
    check "a longer trunk goes on, and is cooled anew" eval 'grep -qa "\"step\":\"3\"" student/trunk/state.safetensors &&
        [ -s student/student/student.safetensors ] && ! same before student/student/log.jsonl'
    check "what came of the shorter one is kept" same before student/student-from-2/log.jsonl
    cp student/student/log.jsonl before
    succeeds env TRUNK=3 "$student" train
    check "what is complete is not made again" same before student/student/log.jsonl
    run "$student" trian
    check "a stage that there is not" eval \
        '[ $status = 2 ] && grep -q "trian. is no stage; expected data, cache, train or score" err'
}

run_groups every_experiment again comparing long_student
end_test
