#!/usr/bin/env bash
# Trains a student of a third of the starter teacher's size for as long as it pays: runs/student.sh [STAGE]. The experiments of
# configs/ see 3600 figures a few times, this one sees 70 000. The aim is 95 % of what the teacher draws exactly.
#
# Stages: data, cache (the teacher's outputs, once), train, score. Without a stage all run, one after another. Everything is made
# in build/student (or $STUDENT_OUT) and stays there: what is complete is not made again, and what was interrupted goes on, so the
# script may be ended and started at any time. Of the environment:
#
#   FIGURES   training figures, number 9000 to 9000 + FIGURES of the starter's sequence (70000)
#   TRUNK, COOL   steps at the full learning rate, which may be made more at any time; steps in which it falls to nothing
#             (30000, 10000)
#   BATCH     images of a step (32)
#   STUDENT   shape of the model (that of runs/experiment.sh)
#   TEST      figures to measure on (dev/starter/test.bin)
#   PROGRAMS  folder of train_distill and eval (.)
#   PYTHON    interpreter with the packages of scripts/requirements.txt (build/venv/bin/python)
set -euo pipefail
shopt -s inherit_errexit
cd "$(dirname "$0")/.."
stage=${1:-}
out=${STUDENT_OUT:-build/student} python=${PYTHON:-build/venv/bin/python} programs=${PROGRAMS:-.}
figures=${FIGURES:-70000} trunk=${TRUNK:-30000} cool=${COOL:-10000} batch=${BATCH:-32} test=${TEST:-dev/starter/test.bin}
teacher=dev/starter/teacher.safetensors
case $stage in
data | cache | train | score | '') ;;
*)
    echo "runs/student.sh: '$stage' is no stage; expected data, cache, train or score" >&2
    exit 2
    ;;
esac
mkdir -p "$out"
. runs/training.sh

student=${STUDENT:-$small_student}

make_data() { # numbers below 9000 hold the data that ships
    [ -x "$out/generate" ] || "${CC:-cc}" -O2 -o "$out/generate" dev/starter/generate.c -lm
    [ -f "$out/train.bin" ] || $python dev/starter/render.py --generator "$out/generate" --tokenizer dev/starter/tokenizer.safetensors \
        --skip 9000 --count "$figures" --out "$out/train.bin"
}

make_cache() { # a live teacher would take more than half of the time
    [ -f "$out/teacher.cache" ] || "$programs/train_distill" --teacher "$teacher" --data "$out/train.bin" --val-data none \
        --temperature 2 --write-teacher-cache "$out/teacher.cache" --teacher-cache-kind topk=32
}

# Cross entropy and KL at temperature 2.
make_student() {
    local given=(--teacher-cache "$out/teacher.cache" --data "$out/train.bin" --val-data dev/starter/val.bin --batch "$batch"
        --w-ce 0.3 --w-soft 0.7 --temperature 2 --kd-schedule none --lr 1.5e-3 --cache 2500 --eval-every 1000)
    train "$out/trunk" "$trunk" --student "$student" --init "$teacher" --init-layers importance --init-width importance \
        --lr-schedule constant --warmup 500 "${given[@]}"
    cool "$out/trunk" "$out/student" "$cool" --warmup 0 "${given[@]}"
}

score() { "$programs/eval" --model "$out/student/student.safetensors" --teacher "$teacher" --data "$test" --report "$out/report"; }

case $stage in data | '') make_data ;; esac
case $stage in cache | '') make_cache ;; esac
case $stage in train | '') make_student ;; esac
case $stage in score | '') score ;; esac
