#!/usr/bin/env bash
# Does the teacher help? Trains the starter student with and without it, from the same initialization, on the same data in
# the same order and for the same number of steps, with several seeds, and evaluates each on validation and test data.
#
#   dev/bench/distil_helps.sh [FOLDER [SEEDS...]]      default: build/distil-helps 1 2 3
set -euo pipefail
cd "$(dirname "$0")/../.."
folder=${1:-build/distil-helps}
shift || true
teacher=dev/starter/teacher.safetensors
mkdir -p "$folder"
models=()
for seed in "${@:-1 2 3}"; do
    for s in $seed; do
        ./train_distill --seed "$s" --out "$folder/with-$s" --overwrite >&2
        ./train_distill --seed "$s" --teacher none --init "$teacher" --out "$folder/without-$s" --overwrite >&2
        models+=(--model "$folder/with-$s/student.safetensors" --model "$folder/without-$s/student.safetensors")
    done
done
for data in val test; do
    ./eval --data dev/starter/$data.bin --teacher "$teacher" "${models[@]}" --json "$folder/$data.json"
    python3 - "$folder/$data.json" <<'END'
import json, statistics, sys
runs = json.load(open(sys.argv[1]))
for kind in "with", "without":
    for key in "ce", "exact":
        x = [r[key] for r in runs if f"/{kind}-" in r["model"]]
        print(f"{kind} the teacher: {key} {statistics.mean(x):.4f}, from {min(x):.4f} to {max(x):.4f}")
END
done
