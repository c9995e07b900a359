# Sourced by the recipes in this folder: trainings that go on where they were. $programs is the folder of train_distill.
# shellcheck shell=bash disable=SC2034,SC2154

# Of runs/experiment.sh and runs/student.sh: 0.87 million parameters, less than a third of the starter's teacher.
small_student=base,vision.layers=3,vision.width=96,vision.heads=3,vision.mlp=384,lm.layers=2,lm.width=128,lm.heads=4,lm.kv_heads=2,lm.ffn=320

steps_of() { # FOLDER: how many steps its checkpoint has; the log may be ahead of it
    head -c 4096 "$1/state.safetensors" 2>/dev/null | grep -ao '"step":"[0-9]*"' | tr -dc 0-9 | grep . || echo 0
}

finished() { [ "$(steps_of "$1")" -ge "$2" ]; } # FOLDER STEPS: it has saved that step, or a later one

train() { # FOLDER STEPS OPTION...
    local folder=$1 steps=$2
    shift 2
    finished "$folder" "$steps" && return
    if [ -f "$folder/state.safetensors" ]; then
        "$programs/train_distill" --resume --out "$folder" --steps "$steps"
    else
        "$programs/train_distill" --out "$folder" --steps "$steps" --overwrite "$@"
    fi
    finished "$folder" "$steps" # an interrupted training has saved where it was, and ends the script here
}

# From the end of the training in TRUNK, the steps in which the learning rate falls to nothing. Where the trunk has become longer
# since, they begin anew, and what came of the shorter one is kept as FOLDER-from-STEPS.
cool() { # TRUNK FOLDER STEPS OPTION...
    local trunk=$1 folder=$2 steps=$3 at from
    shift 3
    at=$(steps_of "$trunk") from=$(cat "$folder/from" 2>/dev/null) || true
    if [ "$from" != "$at" ]; then
        [ ! -f "$folder/log.jsonl" ] || mv -T "$folder" "$folder-from-${from:-before}"
        mkdir -p "$folder"
        echo "$at" >"$folder/from"
    fi
    train "$folder" "$steps" --student "$trunk/student.safetensors" --lr-schedule linear --lr-final 0 "$@"
}
