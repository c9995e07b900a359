#!/usr/bin/env bash
# Makes the reader of formulas, from lists of real formulas to trained models: runs/formula.sh DATA [STAGE].
# DATA is the folder with arxiv-display.txt.xz and the other lists (dev/formula/sources.py says which).
#
# Stages: data, teacher, student, alone (the same student without a teacher), score. Without a stage all but `alone` run, one
# after another. Everything is made in build/formula (or $FORMULA_OUT) and stays there: what is complete is not made again, and
# what was interrupted goes on, so the script may be ended and started at any time. The trainings take days on two processor
# cores. Of the environment:
#
#   SHORT, MIDDLE, TRUNK, COOL   steps with the shortest formulas; with longer ones; with all, at the full learning rate; and steps
#               in which it falls to nothing (6000, 7000, 60000, 12000)
#   BATCH       images of a step (32)
#   FORMULAS    how many formulas of the list are drawn, the first ones of its random order, where none has been drawn yet (all)
#   VALIDATION  formulas to measure on (1000)
#   PROGRAMS    folder of train_distill and eval (.)
#   PYTHON      interpreter with the packages of scripts/requirements.txt (build/venv/bin/python)
set -euo pipefail
shopt -s inherit_errexit
cd "$(dirname "$0")/.."
if [ $# -lt 1 ] || [ ! -d "$1" ]; then
    echo "usage: runs/formula.sh DATA [data|teacher|student|alone|score]" >&2
    exit 2
fi
lists=$1 stage=${2:-}
out=${FORMULA_OUT:-build/formula} python=${PYTHON:-build/venv/bin/python} programs=${PROGRAMS:-.}
short=${SHORT:-6000} middle=${MIDDLE:-7000} trunk=${TRUNK:-60000} cool=${COOL:-12000} batch=${BATCH:-32}
formulas=${FORMULAS:-1000000000} validation=${VALIDATION:-1000}
mkdir -p "$out"
. runs/training.sh

# Images of 48 x 384 pixels, with letters 8 high, in patches of 8. A token is a strip of 6 patches, so the 48 tokens follow each
# other as the formula is read. Formulas begin at the left, so that short ones are learned in narrower images, which cost less.
frame() { # WIDTH
    echo "base,vision.image_height=48,vision.image_width=$1,vision.letter=8,vision.patch=8,connector.kind=strips,connector.concat=6"
}
student=vision.layers=4,vision.width=128,vision.heads=4,vision.mlp=512
student+=,lm.layers=3,lm.width=128,lm.heads=4,lm.kv_heads=4,lm.head_dim=32,lm.ffn=384
teacher=vision.layers=6,vision.width=256,vision.heads=4,vision.mlp=1024
teacher+=,lm.layers=4,lm.width=256,lm.heads=4,lm.kv_heads=4,lm.head_dim=64,lm.ffn=704

# What images of formulas go through before people have them. One in eleven stays as it was drawn.
augment=scale=0.4:0.4..2.5,pad=0.2:0..0.15,blur=0.2:0.3..1.2,noise=0.2:1..12,jpeg=0.3:25..95,contrast=0.2:0.5..1
augment+=,brightness=0.2:0..40,background=0.2:5..40,rotate=0.1:0.2..1.5,elastic=0.05:0.2..0.6,clean=0.5

common=(--val-data "$out/val.bin" --batch "$batch" --cache 2000 --decay 0.05 --eval-every 2000 --eval-batches 10)

# A training in four parts: short formulas as they were drawn, from which a model learns to read from left to right; longer ones,
# as people have them; the trunk, all formulas at a constant rate, which may be made longer at any time; and from its end the
# steps in which the rate falls to nothing. Only these two have a teacher, so that a student with one and a student without begin
# alike. Most batches of the trunk are only as wide as they must be; the last steps see all images in their whole frame, as infer
# does.
begin_model() { # NAME SHAPE LR
    local name=$1 shape=$2 lr=$3
    set -- --tokenizer "$out/tokenizer.safetensors" --teacher none --lr "$lr" --lr-schedule constant --warmup 300 "${common[@]}"
    train "$out/$name-short" "$short" --student "$(frame 128),$shape" --init none --data "$out/short.bin" "$@"
    train "$out/$name-middle" "$middle" --student "$(frame 256),$shape" --init "$out/$name-short/student.safetensors" \
        --data "$out/middle.bin" --augment "$augment" "$@"
}

end_model() { # NAME SHAPE LR BEGINNING OPTION...: from the middle stage of the model BEGINNING
    local name=$1 shape=$2 lr=$3 beginning=$4
    shift 4
    set -- --data "$out/train.bin" --augment "$augment" "${common[@]}" "$@"
    train "$out/$name-trunk" "$trunk" --student "$(frame 384),$shape" --init "$out/$beginning-middle/student.safetensors" \
        --tokenizer "$out/tokenizer.safetensors" --lr "$lr" --lr-schedule constant --warmup 300 --group-by-width "$@"
    cool "$out/$name-trunk" "$out/$name" "$cool" --init none --lr "$lr" --warmup 100 "$@"
}

make_data() {
    [ -f "$out/val.txt" ] || $python dev/formula/sources.py --data "$lists" --generated 60000 --out "$out/train.txt" \
        --val-out "$out/val.txt"
    [ -f "$out/tokenizer.safetensors" ] || $python dev/formula/tokens.py --formulas "$out/train.txt" \
        --out "$out/tokenizer.safetensors"
    [ -f "$out/drawn.txt" ] || head -n "$formulas" "$out/train.txt" >"$out/drawn.partial"
    [ -f "$out/drawn.txt" ] || mv "$out/drawn.partial" "$out/drawn.txt"
    draw val val 2 --count "$validation"
    draw drawn train 1
    draw drawn short 1 --max-tokens 16
    draw drawn middle 1 --max-tokens 48
}

draw() { # LIST NAME SEED OPTION...: the formulas of a list, as a dataset
    local list=$1 name=$2 seed=$3
    shift 3
    [ -f "$out/$name.bin" ] && return
    $python dev/formula/render.py --formulas "$out/$list.txt" --out "$out/$list.parts" --seed "$seed" # drawn already, once
    $python dev/formula/pack.py --parts "$out/$list.parts" --tokenizer "$out/tokenizer.safetensors" --out "$out/$name.bin" "$@"
}

make_teacher() {
    begin_model teacher "$teacher" 6e-4
    end_model teacher "$teacher" 6e-4 teacher --teacher none
}
make_student() {
    begin_model student "$student" 1.5e-3
    end_model student "$student" 1.5e-3 student --teacher "$out/teacher/student.safetensors" --temperature 2 \
        --kd-schedule none --w-ce 0.3 --w-soft 0.7
}
make_alone() {
    begin_model student "$student" 1.5e-3
    end_model alone "$student" 1.5e-3 student --teacher none
}

score() { # of every model that there is: numbers, and a report with images
    local models=()
    for name in teacher student alone; do
        [ -f "$out/$name/student.safetensors" ] && models+=(--model "$out/$name/student.safetensors")
    done
    [ ${#models[@]} -gt 0 ] || { echo "score: no model is trained yet" >&2; exit 1; }
    "$programs/eval" "${models[@]}" --data "$out/val.bin" --texts-are formulas --report "$out/report"
}

case $stage in
data | teacher | student | alone | score | '') ;;
*)
    echo "runs/formula.sh: '$stage' is no stage" >&2
    exit 2
    ;;
esac
[ "$stage" = score ] || make_data
for name in teacher student alone; do # not with &&, which would go on after errors
    [ "$stage" != $name ] || "make_$name"
done
if [ -z "$stage" ]; then
    make_teacher
    make_student
fi
case $stage in score | '') score ;; esac
