# Sourced by the recipes in this folder: a training that goes on where it was. $programs is the folder of train_distill.

finished() { # FOLDER STEPS: the training in FOLDER has reached that step
    [ -f "$1/log.jsonl" ] && tail -n 3 "$1/log.jsonl" | grep -q "\"step\":$2[,}]"
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
