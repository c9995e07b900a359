#!/usr/bin/env bash
# Makes the models of figures, from nothing to trained models: runs/figures.sh [STAGE]. dev/figures/README.md says what the
# figures are.
#
# Stages: data, teacher, student, alone (the same student without a teacher), score. Without a stage all but `alone` run, one
# after another. Everything is made in build/figures (or $FIGURES_OUT) and stays there: what is complete is not made again, and
# what was interrupted goes on, so the script may be ended and started at any time. The trainings take days on two processor
# cores. Of the environment:
#
#   FIGURES   training figures of all levels, drawn CHUNK by CHUNK into files of their own (200000, 20000); only whole files are
#             made, and a training that has begun keeps to its figures
#   HELD_OUT  validation figures, of all levels together, and test figures, of each level (300)
#   LEVELS    levels of the training figures; one that is named twice is twice as frequent (1,2,3,4,5)
#   SHORT, TRUNK, COOL   steps with short programs only, as drawn; steps with all, augmented, at the full learning rate; steps
#             in which it falls to nothing (6000, 80000, 16000)
#   BATCH     images of a step (24)
#   TEACHER, STUDENT     shapes of the two models
#   TOKENIZER_FIGURES    figures that the tokenizer is trained on (20000)
#   PROGRAMS  folder of train_distill and eval (.)
#   PYTHON    interpreter with the packages of scripts/requirements.txt and tokenizers (build/venv/bin/python)
set -euo pipefail
shopt -s inherit_errexit
cd "$(dirname "$0")/.."
stage=${1:-}
out=${FIGURES_OUT:-build/figures} python=${PYTHON:-build/venv/bin/python} programs=${PROGRAMS:-.}
figures=${FIGURES:-200000} chunk=${CHUNK:-20000} held_out=${HELD_OUT:-300} texts=${TOKENIZER_FIGURES:-20000} levels=${LEVELS:-1,2,3,4,5}
short=${SHORT:-6000} trunk=${TRUNK:-80000} cool=${COOL:-16000} batch=${BATCH:-24}
case $stage in
data | teacher | student | alone | score | '') ;;
*)
    echo "runs/figures.sh: '$stage' is no stage; expected data, teacher, student, alone or score" >&2
    exit 2
    ;;
esac
mkdir -p "$out"
. runs/training.sh

# Images of 224 x 224 pixels in 16 x 16 patches of 14; 2 x 2 patches make an image token, 64 in all. The longest program has
# some 300 tokens.
image=vision.image_size=224,vision.patch=14,connector.kind=shuffle,connector.scale_factor=2,lm.max_positions=448
teacher=${TEACHER:-base,$image,vision.layers=6,vision.width=256,vision.heads=4,vision.mlp=1024,lm.layers=6,lm.width=256,lm.heads=4,lm.kv_heads=4,lm.head_dim=64,lm.ffn=768}
student=${STUDENT:-base,$image,vision.layers=4,vision.width=128,vision.heads=4,vision.mlp=512,lm.layers=4,lm.width=128,lm.heads=4,lm.kv_heads=4,lm.head_dim=32,lm.ffn=384}

# What images go through before people have them: other sizes, margins, JPEG, paper, scanners. Some stay as they were drawn.
augment=scale=0.5:0.4..1.5,pad=0.25:0..0.2,blur=0.2:0.3..1.2,noise=0.2:1..10,jpeg=0.3:25..95,contrast=0.15:0.6..1
augment+=,brightness=0.15:0..30,background=0.15:5..40,rotate=0.05:0.2..1,clean=0.5

# A training in three parts: short programs as they were drawn, from which a model learns where to look; the trunk, all
# figures at a constant rate, which may be made longer at any time; and from its end the steps in which the rate falls to nothing.
train_model() { # NAME SHAPE LR OPTION...
    local name=$1 shape=$2 lr=$3
    shift 3
    set -- --data "$out/train-*.bin" --val-data "$out/val.bin" --batch "$batch" --cache 3000 --decay 0.05 --eval-every 2000 \
        --init none "$@"
    train "$out/$name-short" "$short" --student "$shape" --tokenizer "$out/tokenizer.safetensors" --max-tokens 64 --lr "$lr" \
        --lr-schedule constant --warmup 500 "$@"
    set -- --augment "$augment" "$@"
    train "$out/$name-trunk" "$trunk" --student "$out/$name-short/student.safetensors" --lr "$lr" --lr-schedule constant \
        --warmup 100 "$@"
    cool "$out/$name-trunk" "$out/$name" "$cool" --lr "$lr" --warmup 100 "$@"
}

draw() { # NAME SKIP COUNT OPTIONS: a range of figures as a dataset
    [ -f "$out/$1.bin" ] || $python dev/starter/render.py --name dev/figures --generator "$out/generate" --options "$4" --dpi 90..220 \
        --tokenizer "$out/tokenizer.safetensors" --skip "$2" --count "$3" --out "$out/$1.bin"
}

# The parts train, val and test of the generator share no figure, so any ranges of them may be taken.
make_data() {
    local level at
    [ -x "$out/generate" ] || "${CC:-cc}" -O2 -o "$out/generate" dev/figures/generate.c -lm
    if [ ! -f "$out/tokenizer.safetensors" ]; then
        "$out/generate" --seed 2 --count "$texts" --part train >"$out/texts"
        $python scripts/train_tokenizer.py --texts "$out/texts" --vocabulary 960 --out "$out/tokenizer.safetensors"
        rm "$out/texts"
    fi
    for level in 1 2 3 4 5; do draw "test-$level" 0 "$held_out" "--level $level --part test"; done
    draw val 0 "$held_out" "--part val"
    for ((at = 0; at + chunk <= figures; at += chunk)); do
        draw "train-$(printf '%03d' $((at / chunk)))" "$at" "$chunk" "--levels $levels --part train"
    done
}

make_teacher() { train_model teacher "$teacher" 6e-4 --teacher none; }
make_student() {
    train_model student "$student" 1.2e-3 --teacher "$out/teacher/student.safetensors" --temperature 2 --kd-schedule none \
        --w-ce 0.3 --w-soft 0.7
}
make_alone() { train_model alone "$student" 1.2e-3 --teacher none; }

score() { # of every model that there is, level by level: numbers, and a report with images
    local models=() level
    for name in teacher student alone; do
        [ -f "$out/$name/student.safetensors" ] && models+=(--model "$out/$name/student.safetensors")
    done
    [ ${#models[@]} -gt 0 ] || { echo "score: no model is trained yet" >&2; exit 1; }
    for level in 1 2 3 4 5; do
        echo "level $level"
        "$programs/eval" "${models[@]}" --data "$out/test-$level.bin" --report "$out/report-$level" --json "$out/score-$level.json"
    done
}

[ "$stage" = score ] || make_data
for name in teacher student alone; do # not with &&, which would go on after errors
    [ "$stage" != $name ] || "make_$name"
done
if [ -z "$stage" ]; then
    make_teacher
    make_student
fi
case $stage in score | '') score ;; esac
