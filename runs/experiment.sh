#!/usr/bin/env bash
# Runs an experiment of configs/ on the starter: runs/experiment.sh NAME [SEED [OPTION...]]; the OPTIONs are train_distill's.
#
# All experiments train the same student ($STUDENT) from the same weights on the same figures, for as many steps ($STEPS); they
# differ only in what configs/NAME.conf says. What an experiment needs is made first: the programs that the teacher's beams
# find, or the trained student that `lora` and `reinforce` begin with. Everything is kept in build/experiments ($EXPERIMENTS):
# NAME-SEED is the training's folder, NAME-SEED/seconds the time it took. What is finished is not run again, and what was
# interrupted goes on. With $OTHER_STEPS the experiment has that many steps, and its folder is NAME-SEED-time, or with $OTHER_NAME
# that in place of time: for runs/compare.sh.
set -euo pipefail
shopt -s inherit_errexit
cd "$(dirname "$0")/.."
name=${1:-} seed=${2:-1}
shift $(($# < 2 ? $# : 2))
if [ ! -f "configs/$name.conf" ] || ! [[ $seed =~ ^[0-9]+$ ]]; then
    echo "usage: runs/experiment.sh NAME [SEED [OPTION...]]; NAME is one of" $(basename -s .conf configs/*) >&2
    exit 2
fi
out=${EXPERIMENTS:-build/experiments} steps=${STEPS:-900}
teacher=${TEACHER:-dev/starter/teacher.safetensors} data=${DATA:-dev/starter/train.bin}
val=${VAL:-dev/starter/val.bin} programs=${PROGRAMS:-.}
mkdir -p "$out"
. runs/training.sh
student=${STUDENT:-$small_student}

# The folder of the training to begin with: a finished one, made where it is missing.
base_of() { # EXPERIMENT
    OTHER_STEPS= "$0" "$1" "$seed" >&2
    echo "$out/$1-$seed"
}

teachers_programs() {
    [ -f "$out/beam.bin" ] && return
    local go_on=()
    [ -f "$out/beam.bin.programs.partial" ] && go_on=(--resume)
    "$programs/infer" --model "$teacher" --beam 5 "${go_on[@]}" --dataset "$out/beam.bin" "$data"
}

says() { grep -q "^$1 *=" "configs/$name.conf"; } # whether the experiment has an option of its own

folder=$out/$name-$seed${OTHER_STEPS:+-${OTHER_NAME:-time}} steps=${OTHER_STEPS:-$steps}
finished() { [ -f "$folder/seconds" ] && [ "$(steps_of "$folder")" = "$steps" ]; } # not more: a comparison counts the steps
finished && exit
given=(--config "configs/$name.conf" --out "$folder" --seed "$seed" --steps "$steps" --tokenizer "$teacher")
says reinforce || given+=(--val-data "$val")
says teacher || says reinforce || given+=(--teacher "$teacher") # rewards keep the student near its own beginning
if says lora || says reinforce; then
    base=$(base_of target_soft)
    given+=(--student "$base/student.safetensors")
else
    given+=(--student "$student" --init "$teacher" --init-layers importance --init-width importance)
fi
if says data; then
    teachers_programs
    given+=(--data "$out/beam.bin")
else
    given+=(--data "$data")
fi

# The time is that of all parts of an interrupted training.
begin=$(date +%s.%N) before=0 status=0
if [ -f "$folder/state.safetensors" ]; then
    [ ! -f "$folder/seconds" ] || before=$(cat "$folder/seconds")
    "$programs/train_distill" --resume --out "$folder" --steps "$steps" || status=$?
else
    rm -rf "$folder"
    "$programs/train_distill" "${given[@]}" "$@" || status=$?
fi
[ ! -f "$folder/log.jsonl" ] ||
    awk -v a="$begin" -v b="$(date +%s.%N)" -v before="$before" 'BEGIN { print b - a + before }' >"$folder/seconds"
[ $status = 0 ] && finished || { echo "runs/experiment.sh: $folder is not finished" >&2; exit 1; }
