# Sourced by the recipes in this folder: a training that goes on where it was. $programs is the folder of train_distill.

finished() { # FOLDER STEPS: the training in FOLDER has reached that step, or a later one
    local last
    last=$(tail -n 3 "$1/log.jsonl" 2>/dev/null | grep -o '"step":[0-9]*' | tail -n 1 | cut -d : -f 2) || true
    [ "${last:-0}" -ge "$2" ]
}

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
