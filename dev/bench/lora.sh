#!/bin/bash
# Adapters (train_distill --lora) against training every weight: peak memory, processor time of a step, and the size of a
# checkpoint; for the starter student and for a model of 35 M random weights.
#
#   dev/bench/lora.sh [BUILD]        default: build/BF16
build=${1:-build/BF16} tmp=$(mktemp -d) || exit 1
trap 'rm -rf "$tmp"' EXIT
large=base,lm.layers=8,lm.width=512,lm.heads=8,lm.kv_heads=4,lm.head_dim=64,lm.ffn=1408
large=$large,vision.width=384,vision.layers=6,vision.heads=6,vision.mlp=1536
run=("$build/train_distill" --teacher none --val-data none --overwrite)

"${run[@]}" --student $large --init none --steps 1 --batch 1 --lr 0 --out "$tmp/large" >/dev/null 2>&1 || exit 1
measure() { # NAME STEPS OPTIONS...: the time of STEPS steps more than two, over their number
    local name=$1 steps=$2 peak first last
    shift 2
    for n in 2 $((2 + steps)); do
        /usr/bin/time -o "$tmp/time" -f '%M %U' "${run[@]}" "$@" --steps $n --out "$tmp/run" >/dev/null 2>"$tmp/err" ||
            exit 1
        first=$last
        read -r peak last <"$tmp/time"
    done
    awk -v name="$name" -v peak="$peak" -v s="$(echo "$last $first" | awk '{ print $1 - $2 }')" -v n="$steps" \
        -v bytes="$(cat "$tmp"/run/*.safetensors | wc -c)" 'BEGIN {
            printf "%-34s %5.0f MB %6.2f s a step, checkpoint %6.1f MB\n", name, peak / 1024, s / n, bytes / 1e6 }'
    grep '^lora: what' "$tmp/err"
}
for model in "starter dev/starter/student.safetensors 16 20" "large $tmp/large/student.safetensors 2 6"; do
    read -r name file batch steps <<<"$model"
    base=(--student "$file" --batch "$batch")
    measure "$name, every weight" "$steps" "${base[@]}"
    measure "$name, rank 8" "$steps" "${base[@]}" --lora 8
    measure "$name, rank 8, dropout 0.1" "$steps" "${base[@]}" --lora 8 --lora-dropout 0.1
    measure "$name, rank 8, all layers" "$steps" "${base[@]}" --lora 8 --lora-targets all
done
