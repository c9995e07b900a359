#!/bin/bash
# Learning from rewards: --reinforce with real TeX, its log, resuming, threads, groups without a signal, programs without an
# end, options that do not go together.
#
#   test/test_reinforce.sh build/BF16      the folder with train_distill and infer
#
# GROUPS_TO_RUN names groups, VERBOSE=1 times them. Without TeX only the refusals are tested.
. "$(dirname "$0")/check.sh"
programs=$(cd "${1:-build/BF16}" && pwd) || exit 1
begin_test reinforce
cd "$tmp" || exit 1
. "$root/test/training.sh"
export OMP_NUM_THREADS=${OMP_NUM_THREADS:-2} XDG_CACHE_HOME=$tmp/cache
ship=dev/starter/student.safetensors
rewards=("$train" --data train.bin --student $ship --reinforce 4 --batch 8 --lr 1e-3 --lr-schedule constant --warmup 0)

rewards_of() { "$damage" json "$1/log.jsonl" reward compiles exact length kl clipped equal_groups cut norm loss; }
same_steps() { same_run "$1" "$2" && [ "$(rewards_of "$1")" = "$(rewards_of "$2")" ]; }

has_tex() {
    command -v pdflatex >/dev/null && command -v pdftocairo >/dev/null && return
    echo "not tested here: $1, which needs TeX and Poppler (scripts/deps.sh tex)"
    return 1
}

# Two updates on the same programs, rewards for commands: a stop between steps and the number of threads change no bit.
learning() {
    has_tex rewards || return
    local options=(--updates 2 --command-reward 10 --clip-ratio 0.1 --kl 0.05 --sample-temperature 1.2)
    succeeds "${rewards[@]}" "${options[@]}" --steps 3 --eval-every 2 --out whole
    check "the summary counts programs and threads" grep -q '^rewards: 4 programs for each image, drawn by 2 threads of TeX' err
    check "the student is the result" [ "$(<out)" = whole/student.safetensors ]
    check "rewards are between -1 and 1" eval 'at_least "$(number_of whole/log.jsonl reward 1)" -1 && at_least 1 "$(number_of whole/log.jsonl reward 1)"'
    check "most programs of the starter student compile" at_least "$(number_of whole/log.jsonl compiles 1)" 0.5
    check "the second update moves away from the reference" below 0 "$(number_of whole/log.jsonl kl 1)"
    check "a ratio of 1.1 is reached" below 0 "$(number_of whole/log.jsonl clipped 3)"
    check "the encoder stays as it was" [ "$("$damage" tensor whole/student.safetensors vision.0.qkv.weight | cksum)" = \
        "$("$damage" tensor $ship vision.0.qkv.weight | cksum)" ]
    check "the decoder does not" [ "$("$damage" tensor whole/student.safetensors lm.0.qkv.weight | cksum)" != \
        "$("$damage" tensor $ship lm.0.qkv.weight | cksum)" ]
    succeeds env OMP_NUM_THREADS=1 "${rewards[@]}" "${options[@]}" --steps 2 --out half
    succeeds "$train" --resume --out half --steps 3
    succeeds "$train" --config whole/options.txt --steps 1 --out again
    check "recorded options serve as --config" [ "$(rewards_of again)" = "$(rewards_of whole | head -n 1)" ]
    check "a run that was stopped and had other threads has the same bits" same_steps half whole
    succeeds "${rewards[@]}" --steps 1 --kl 0 --reward emd --out alone
    check "without --kl there is no reference" grep -q 'teacher 0.0 MB' err
    check "before the first update the ratio is 1" [ "$(number_of alone/log.jsonl clipped 1)" = 0 ]
    succeeds "${rewards[@]}" --steps 1 --lora 4 --out adapters
    check "adapters learn from rewards too" [ -s adapters/adapter.safetensors ]
}

# A student that knows nothing: no program has an end, so that all rewards are equal.
nothing_to_learn() {
    has_tex "groups without a signal" || return
    succeeds "${alone[@]}" --student "$shape" --steps 1 --out random
    succeeds "$train" --data train.bin --student random/student.safetensors --reinforce 4 --batch 8 --max-tokens 16 \
        --steps 3 --eval-every 1 --out same
    check "programs without end are said once" [ "$(grep -c 'have no end after 16 tokens' err)" = 1 ]
    check "equal rewards are said once" [ "$(grep -c 'there is nothing to learn' err)" = 1 ]
    check "they are rewarded like those that do not compile" [ "$(number_of same/log.jsonl reward 3)" = -1 ]
    check "nothing changes" [ "$(cksum <same/student.safetensors)" = "$(cksum <random/student.safetensors)" ]
}

refusals() {
    local a=("$train" --data train.bin --out no)
    refuses 2 "a group needs at least 2" "${a[@]}" --student $ship --reinforce 1
    refuses 2 "cannot be divided into groups of --reinforce 3" "${a[@]}" --student $ship --reinforce 3 --batch 8
    refuses 2 "--student must be its file, not 'tiny'" "${a[@]}" --student tiny --reinforce 4
    refuses 2 "leave out --w-ce" "${a[@]}" --student $ship --reinforce 4 --w-ce 1
    refuses 2 "leave out --teacher-cache" "${a[@]}" --student $ship --reinforce 4 --teacher-cache x
    refuses 2 "leave out --val-data" "${a[@]}" --student $ship --reinforce 4 --val-data val.bin
    refuses 2 "leave out --on-policy" "${a[@]}" --student $ship --reinforce 4 --on-policy 0.5
    refuses 2 "must not learn to please itself" "${a[@]}" --student $ship --reinforce 4 --reward emd --train vision --kl 0
    refuses 2 "--kl is an option of --reinforce G" "${a[@]}" --teacher none --kl 0.1
    refuses 2 "--reward is 'taste'" "${a[@]}" --student $ship --reinforce 4 --reward taste
    run env PATH=/nowhere "${a[@]}" --student $ship --reinforce 4
    check "without TeX: a sentence" eval '[ $status = 1 ] && grep -q "^train_distill: error: no TeX engine is installed" err'
    check "no student was written" [ ! -e no/student.safetensors ]
}

run_groups refusals learning nothing_to_learn
end_test
