#!/usr/bin/env bash
# Compares ways to distil: runs/compare.sh [NAME...] runs these experiments of configs/ (all of them without a NAME) with three
# seeds each, once for the same number of steps and once for the same time, and ends in a table and eval's reports.
#
# SEEDS, STEPS and what runs/experiment.sh takes can be set; what is finished is not run again, so that the script may be ended
# and started at any time, also with more seeds; another STEPS needs a folder of its own. The time that every experiment gets is
# what target_soft takes for STEPS steps, in the mean; the steps that fill it follow from the experiment's own time. (Making the teacher's programs is not counted.) Those that $LONG
# names (reinforce, whose steps take many times as long) are compared for equal time only. Results are in
# build/experiments ($EXPERIMENTS): steps.md and time.md, and for each seed the reports steps-SEED and time-SEED.
set -euo pipefail
shopt -s inherit_errexit
cd "$(dirname "$0")/.."
out=${EXPERIMENTS:-build/experiments} steps=${STEPS:-900} test=${TEST:-dev/starter/test.bin}
teacher=${TEACHER:-dev/starter/teacher.safetensors} programs=${PROGRAMS:-.} long=${LONG-reinforce}
read -ra seeds <<<"${SEEDS:-1 2 3}"
names=("$@")
[ $# -gt 0 ] || mapfile -t names < <(basename -s .conf configs/*.conf)
for name in "${names[@]}"; do
    [ -f "configs/$name.conf" ] || { echo "runs/compare.sh: there is no configs/$name.conf" >&2; exit 2; }
done

mkdir -p "$out"
[ -f "$out/steps" ] || echo "$steps" >"$out/steps"
if [ "$(cat "$out/steps")" != "$steps" ]; then
    echo "runs/compare.sh: $out has experiments of $(cat "$out/steps") steps, and STEPS is $steps; name another folder (EXPERIMENTS)" >&2
    exit 2
fi

is_long() { [[ " $long " == *" $1 "* ]]; } # NAME

seconds_a_step() { # NAME: in its trainings for the same number of steps, or, of a long one, in a few steps of their own
    local seed kind= n=$steps
    if is_long "$1"; then
        kind=-trial n=$((steps / 50 + 1))
        for seed in "${seeds[@]}"; do OTHER_STEPS=$n OTHER_NAME=trial runs/experiment.sh "$1" "$seed" >&2; done
    fi
    for seed in "${seeds[@]}"; do cat "$out/$1-$seed$kind/seconds"; done | awk -v n="$n" '{ sum += $1 } END { print sum / NR / n }'
}

report() { # KIND SEED: eval's report of all experiments with this seed; KIND is steps or time
    local models=() name folder from
    mkdir -p "$out/models-$1-$2"
    for name in "${names[@]}"; do # a report names a model by its file
        folder=$out/$name-$2 model=$out/models-$1-$2/$name.safetensors
        [ "$1" = steps ] || folder+=-time
        from=$folder/student.safetensors
        [ ! -f "$folder/adapter.safetensors" ] || from=$folder/adapter.safetensors
        models+=(--model "$model")
        [ ! -f "$model" ] || [ "$from" -nt "$model" ] || continue
        if [ "$from" = "$folder/adapter.safetensors" ]; then
            "$programs/quantize" -q --lora "$from" "$out/target_soft-$2/student.safetensors" "$model"
        else
            cp "$from" "$model.partial"
            mv "$model.partial" "$model"
        fi
    done
    "$programs/eval" "${models[@]}" --teacher "$teacher" --data "$test" --report "$out/$1-$2" --resume >"$out/$1-$2.txt"
}

table() { # KIND: means over the seeds, and in brackets the standard deviations
    local seed
    echo "| experiment | steps | seconds | cross entropy | exact programs, % | exact drawings, % |"
    echo "|---|---|---|---|---|---|"
    for seed in "${seeds[@]}"; do
        for name in "${names[@]}"; do
            folder=$out/$name-$seed
            [ "$1" = steps ] || folder+=-time
            echo "steps,$name,$(tail -n 1 "$folder/log.jsonl" | sed 's/.*"step":\([0-9]*\).*/\1/')"
            echo "seconds,$name,$(cat "$folder/seconds")"
        done
        cat "$out/$1-$seed/metrics.csv"
    done | awk -F, -v names="${names[*]}" '
        $3 != "" { value[$1, $2, ++n[$1, $2]] = $3 }
        function cell(key, name, factor, digits,    i, sum, square, mean, count) {
            if (!(count = n[key, name])) return "-" # not measured: without TeX there are no drawings
            for (i = 1; i <= count; i++) sum += factor * value[key, name, i]
            mean = sum / count
            for (i = 1; i <= count; i++) square += (factor * value[key, name, i] - mean) ^ 2
            if (count == 1) return sprintf("%.*f", digits, mean)
            return sprintf("%.*f (%.*f)", digits, mean, digits, sqrt(square / (count - 1)))
        }
        END {
            many = split(names, name, " ")
            for (k = 1; k <= many; k++)
                print "| " name[k] " | " cell("steps", name[k], 1, 0) " | " cell("seconds", name[k], 1, 0) " | " \
                    cell("ce", name[k], 1, 4) " | " cell("exact_match", name[k], 1, 1) " | " cell("exact_pixels", name[k], 100, 1) " |"
        }'
}

all=("${names[@]}") names=()
for name in "${all[@]}"; do is_long "$name" || names+=("$name"); done
for seed in "${seeds[@]}"; do
    for name in "${names[@]}"; do runs/experiment.sh "$name" "$seed"; done
    [ ${#names[@]} = 0 ] || report steps "$seed"
done
table steps >"$out/steps.md"
names=("${all[@]}")
for seed in "${seeds[@]}"; do runs/experiment.sh target_soft "$seed"; done
a_step=$(seconds_a_step target_soft)

steps_for_time() { # NAME: that fill the time; kept, so that all seeds have the same
    local kept=$out/steps-for-time-$1 own
    if [ ! -s "$kept" ]; then
        own=$(seconds_a_step "$1")
        awk -v n="$steps" -v other="$a_step" -v own="$own" 'BEGIN { print int(n * other / own) + 1 }' >"$kept"
    fi
    cat "$kept"
}

for seed in "${seeds[@]}"; do
    for name in "${names[@]}"; do
        other=$(steps_for_time "$name")
        OTHER_STEPS=$other runs/experiment.sh "$name" "$seed"
    done
    report time "$seed"
done
table time >"$out/time.md"
cat "$out/steps.md" "$out/time.md"
