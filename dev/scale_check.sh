#!/usr/bin/env bash
# Predicted beside measured: the starter's distillation on one, two and four CPU ranks of one thread on this machine.
#
#   dev/scale_check.sh [BUILD]      BUILD: the folder with the programs and scale; default build/BF16
#
# First this machine's rates are measured (scale --measure), and the share of the product rate that one rank reaches,
# alone and beside another one that does the same and says nothing to it. From these `scale` predicts everything else:
# other batches, models and levels of recomputation, and ranks that talk to each other. Takes about three minutes on two
# idle cores. Ends with 0 when every run could be made; how near the predictions are is for the reader to judge.
set -uo pipefail
cd "$(dirname "$0")/.." || exit 1
build=${1:-build/BF16}
work=build/scale_check
export LC_ALL=C
failures=0
rm -rf "$work"
mkdir -p "$work" || exit 1

teacher=dev/starter/teacher.safetensors student=dev/starter/student.safetensors batch=16 steps=${STEPS:-48}
distil=(--teacher "$teacher" --student "$student")
cores=$(nproc)

start() { # NAME OPTIONS...: trains a student of one thread a rank, in the background
    local name=$1
    shift
    "$build/train_distill" --out "$work/$name" --student base,lm.layers=2 --threads 1 --steps "$steps" --val-data none \
        --eval-every "$steps" --batch $batch "$@" >"$work/$name.out" 2>"$work/$name.err" &
}

quantile() { # SHARE KEY FILE...: of a number in the lines of the last three quarters of the steps
    local share=$1 key=$2
    shift 2
    for log in "$@"; do
        grep -o "\"$key\":[-0-9.e+]*" "$log" | cut -d: -f2 | tail -n $((steps * 3 / 4))
    done | sort -g | awk -v share="$share" '{ x[NR] = $1 } END { if (NR) print x[int(1 + (NR - 1) * share)]; else print 0 }'
}
# What else the machine does only ever slows a step down: of the steps' rates the upper quartile is taken.
speed() { quantile 0.75 tokens_per_second "$@"; }

rate() { # NAME OPTIONS...: tokens per second of one run
    start "$@"
    wait $! || { echo "scale_check.sh: the run $1 failed: $(tail -n 1 "$work/$1.err")" >&2 && failures=$((failures + 1)); }
    [ -e "$work/$1/log.jsonl" ] && speed "$work/$1/log.jsonl"
}

rate_beside() { # NAME OPTIONS...: of each of two runs that go on at the same time and know nothing of each other
    local name=$1
    shift
    start "$name-a" "$@"
    local first=$!
    start "$name-b" "$@"
    wait "$first" $!
    speed "$work/$name-a/log.jsonl" "$work/$name-b/log.jsonl"
}

machine=()
scale() { "$build/scale" --data dev/starter/train.bin --train vision,connector,lm "${machine[@]}" -b $batch "$@"; }

read -ra machine < <("$build/scale" --measure --threads 1 --ranks 2) || exit 1
echo "this machine: ${machine[*]}"
read -ra alone < <(scale --teacher none --student $student --solve share --measured "$(rate alone --teacher none)") || exit 1
distilling=$(rate distil)
read -ra more < <(scale "${distil[@]}" "${alone[@]}" --solve teacher-share --measured "$distilling") || exit 1
alone+=("${more[@]}")
echo "one rank alone: ${alone[*]}"
read -ra beside < <(awk -v beside="$(rate_beside beside)" -v alone="$distilling" -v share="${alone[1]}" \
    -v teacher="${alone[3]}" 'BEGIN { s = beside / alone; print "--share", s * share, "--teacher-share", s * teacher }')
echo "beside another one: ${beside[*]}"
echo

line() { # WHAT NAME PREDICTED-LINE: one line of the table
    local log=$work/$2/log.jsonl
    awk -F'|' -v what="$1" -v tokens="$(speed "$log")" -v comm="$(quantile 0.5 comm "$log")" \
        -v wait="$(quantile 0.5 wait "$log")" '{
        printf "| %s | %.0f | %.0f | %.2f | %.1f | %.1f | %.1f | %.1f |\n", what, $8, tokens, $8 / tokens, $6, 1000 * comm,
               $7, 1000 * wait
    }' <<<"$3"
}

compare() { # WHAT NAME SCALE-OPTIONS -- TRAIN-OPTIONS: predicts, runs, prints
    local what=$1 name=$2 predict=()
    shift 2
    while [ "$1" != -- ]; do
        predict+=("$1")
        shift
    done
    shift
    rate "$name" "$@" >/dev/null
    [ -e "$work/$name/log.jsonl" ] || return
    line "$what" "$name" "$(scale --brief "${distil[@]}" "${predict[@]}")"
}

echo "| one thread a rank | predicted tokens/s | measured | ratio | predicted messages, ms | comm, ms | predicted waiting, ms | wait, ms |"
echo "|---|---|---|---|---|---|---|---|"
compare "1 rank, without teacher" again "${alone[@]}" --teacher none -- --teacher none
compare "1 rank, batch 64" large "${alone[@]}" -b 64 -- --batch 64
compare "1 rank, student of 4 layers" deep "${alone[@]}" --student $teacher -- --student base
compare "1 rank, --recompute blocks" blocks "${alone[@]}" --recompute blocks -- --recompute blocks
compare "2 ranks" ranks-2 "${beside[@]}" -B 2 -- --ranks 2 --teachers 0
compare "2 ranks, without teacher" alone-2 "${beside[@]}" -B 2 --teacher none -- --ranks 2 --teacher none
compare "2 ranks: 1 teacher, 1 student" apart-1-1 "${beside[@]}" -A 1 -B 1 -- --ranks 2 --teachers 1 --students 1
shared=$(((4 + cores - 1) / cores))
compare "4 ranks on $cores cores" ranks-4 "${beside[@]}" -B 4 --per-device "$shared" -- --ranks 4 --teachers 0
compare "4 ranks: 1 teacher, 3 students" apart-1-3 "${beside[@]}" -A 1 -B 3 --per-device "$shared" -- \
    --ranks 4 --teachers 1 --students 3
[ $failures -eq 0 ] || { echo "scale_check.sh: $failures runs failed; their messages are in $work" >&2 && exit 1; }
