#!/bin/bash
# Training on the student's own samples: what is learned from them, replay, DistiLLM-2, resuming, ranks, refusals.
#
#   test/test_on_policy.sh build/BF16      the folder with train_distill and infer
#
# GROUPS_TO_RUN names groups, VERBOSE=1 times them. Needs what `make` needs.
. "$(dirname "$0")/check.sh"
. "$(dirname "$0")/mpi.sh"
programs=$(cd "${1:-build/BF16}" && pwd) || exit 1
begin_test on_policy
cd "$tmp" || exit 1
. "$root/test/training.sh"
export OMP_NUM_THREADS=${OMP_NUM_THREADS:-2}

# A teacher of another width and image size, and a student that has begun to learn, so that its samples differ.
succeeds "${alone[@]}" --student "${wide/image_size=48/image_size=72}" --steps 20 --lr 0.02 --lr-schedule constant --out t
cp t/student.safetensors teacher.safetensors
plain=("${taught[@]}" --batch 4 --accum 2 --lr 0.01 --lr-schedule constant --kd-schedule none)
own=("${plain[@]}" --on-policy 1 --on-policy-tokens 24)

same_state() { # A B: the student, or its adapter, and the optimizer
    local weights=student
    [ -e "$1/student.safetensors" ] || weights=adapter
    same "$1/$weights.safetensors" "$2/$weights.safetensors" && same "$1/state.safetensors" "$2/state.safetensors"
}
same_bits() { same_state "$1" "$2" && same_log "$1" "$2"; }
logged() { "$damage" json "$1/log.jsonl" "$2" | tr -d ' \n'; } # OUT KEY: of every step, one after another

# What a greedy student writes, as infer wrote it to a data set, is learned from as that data set is: to the same bits, with every
# term of the objective but the cross entropy.
same_as_data() {
    local student=$root/dev/starter/student.safetensors teacher=$root/dev/starter/teacher.safetensors
    "$damage" part "$starter" few.bin 0 16
    succeeds "$infer" --model "$student" --dataset greedy.bin few.bin
    local on=("$train" --data greedy.bin --val-data none --teacher "$teacher" --student "$student" --lr 0.001 --steps 1 --batch 4
        --accum 2 --w-soft 0.7 --w-hard 0.3 --w-embed 0.2 --train connector,lm)
    succeeds "${on[@]}" --soft-loss jsd --w-ce 0 --out data
    succeeds "${on[@]}" --soft-loss jsd --w-ce 0.4 --on-policy 1 --on-policy-temperature 0 --out own
    check "own samples are learned from as the same programs of a data set" same_state data own
    check "with the same loss" [ -n "$(logged data loss)" -a "$(logged data loss)" = "$(logged own loss)" ]
    check "all of them have an end" [ "$(logged own on_policy) $(logged own cut)" = "1 0" ]
    succeeds "${on[@]}" --w-ce 0 --out kl --method distillm2 --on-policy 1 --on-policy-temperature 0 --w-hard 0
    check "DistiLLM-2 learns from them otherwise" differ data/student.safetensors kl/student.safetensors
}

# A student that has learned nothing never ends.
limits() {
    succeeds "${own[@]}" --steps 2 --out cut --on-policy-tokens 5
    check "samples without an end are mentioned once" [ "$(grep -c '8 of 8 own samples were cut before an end' err)" = 1 ]
    check "and counted" eval '[ "$(logged cut cut)" = 88 ] && grep -q "own samples: 16, of which 16 have no end; sampling took" err'
    check "the summary says how they are drawn" \
        grep -q 'own samples: 100 % of the batches, up to 5 tokens each, at temperature 1; key-value cache' err
    check "the share of time is logged" grep -q '"sampling":0\.' cut/log.jsonl
    succeeds "${plain[@]}" --steps 8 --out some --on-policy 0.5 --on-policy-tokens 24 --seed 3
    check "some batches are the data's" eval '[[ $(logged some on_policy) == *01* && $(logged some on_policy) == *10* ]]'
    succeeds "${plain[@]}" --steps 8 --out more --on-policy 0.5 --on-policy-tokens 24 --seed 3 --batch 8 --accum 1
    check "which ones does not depend on the micro-batches" [ "$(logged some on_policy)" = "$(logged more on_policy)" ]
    succeeds "${own[@]}" --steps 2 --out warm --on-policy-temperature 3
    succeeds "${own[@]}" --steps 2 --out cool --on-policy-temperature 0.2
    check "the temperature matters" differ warm/student.safetensors cool/student.safetensors
    OMP_NUM_THREADS=1 succeeds "${own[@]}" --steps 2 --out warm1 --on-policy-temperature 3
    check "the number of threads does not" same_bits warm warm1
}

# goes_on WHAT OPTIONS...: stopped and resumed, a run has the same bits as in one piece.
goes_on() {
    local what=$1
    shift
    succeeds "${plain[@]}" --steps 8 --eval-every 4 --out whole --overwrite --on-policy-tokens 24 "$@"
    succeeds "${plain[@]}" --steps 4 --out half --overwrite --on-policy-tokens 24 "$@"
    succeeds "$train" --resume --out half --steps 8 --eval-every 4
    check "resumed, the same bits: $what" same_bits whole half
}

resumes() {
    goes_on "own samples" --on-policy 0.6
    goes_on "replay" --on-policy 1 --replay 3
    check "half of the batches are earlier ones" eval '[[ $(logged whole replayed) == *1*1* && $(logged whole replayed) == 0*0* ]]'
    check "which are in the checkpoint" grep -q 'replay.ids' whole/state.safetensors
    cp -r half other
    succeeds "$train" --resume --out other --steps 9 --on-policy-tokens 16
    check "kept samples of other batches are left out, which is said" grep -q 'none is learned from again' err
    cp -r half fewer
    succeeds "$train" --resume --out fewer --steps 9 --replay 2
    cp -r half damaged
    "$damage" flip half/state.safetensors damaged/state.safetensors $((8 * $(stat -c %s half/state.safetensors) - 2))
    refuses 1 "damaged/state.safetensors is damaged: its kept samples of batch" "$train" --resume --out damaged --steps 9
    goes_on "DistiLLM-2" --method distillm2 --replay 3 --own-weight 1.3
    goes_on "images that change, replay" --on-policy 1 --replay 2 --augment noise=0.5:5..30
    cp t/student.safetensors base.safetensors
    rm -r whole half
    goes_on "LoRA" --on-policy 0.7 --replay 2 --student base.safetensors --lora 2 --lora-dropout 0.2
}

# The sums are in another order, the samples are the same.
ranks() {
    local options=(--steps 4 --on-policy 1 --on-policy-tokens 24 --replay 2 --eval-every 2 --seed 2) i
    have_mpi "$train" || return
    succeeds "${plain[@]}" "${options[@]}" --out one
    succeeds "${mpirun[@]}" -n 2 "${plain[@]}" "${options[@]}" --accum 1 --out two
    check "two ranks learn from the same kinds of batches" [ "$(logged one replayed)" = "$(logged two replayed)" ]
    for i in 1 2 3; do
        check "two ranks have the loss of one, step $i" near "$(number_of two/log.jsonl loss $i)" "$(number_of one/log.jsonl loss $i)" 0.02
    done
    check "to rounding in the first step" near "$(number_of two/log.jsonl loss 1)" "$(number_of one/log.jsonl loss 1)" 1e-5
    check "with its gradients" near "$(number_of two/log.jsonl norm 1)" "$(number_of one/log.jsonl norm 1)" 1e-3
    succeeds "$train" --resume --out two --steps 6
    check "one process goes on with the samples of two" eval '! grep -q "none is learned from again" err'
}

# Samples that are drawn a step ahead, by the weights of the step before.
ahead() {
    local options=(--steps 3 --on-policy 1 --lr-schedule constant)
    succeeds "${own[@]}" "${options[@]}" --out fresh
    succeeds "${own[@]}" "${options[@]}" --out stale --on-policy-ahead
    check "the summary says so" grep -q 'at temperature 1, drawn a step ahead; key-value cache' err
    check "the first step is the same" [ "$(number_of fresh/log.jsonl loss 1)" = "$(number_of stale/log.jsonl loss 1)" ]
    check "the second is not" [ "$(number_of fresh/log.jsonl loss 2)" != "$(number_of stale/log.jsonl loss 2)" ]
    succeeds "${own[@]}" "${options[@]}" --out fresh --overwrite --lr 1e-30
    succeeds "${own[@]}" "${options[@]}" --out stale --overwrite --lr 1e-30 --on-policy-ahead
    check "weights that do not change draw the same" eval '[ "$(log_of fresh)" = "$(log_of stale)" ]'
    goes_on "a step ahead" --on-policy 0.6 --on-policy-ahead
    check "the next batch's samples are in the checkpoint" grep -q 'ahead.ids' stale/state.safetensors
    goes_on "a step ahead, replay" --on-policy 1 --replay 3 --on-policy-ahead
    check "some are drawn, some are kept ones" eval '[[ $(logged whole replayed) == *1* && $(logged whole replayed) == 0*0* ]]'
    goes_on "a step ahead, LoRA" --on-policy 0.7 --student t/student.safetensors --lora 2 --lora-dropout 0.2 --on-policy-ahead
    refuses 2 "--on-policy-ahead is an option of --on-policy" "${plain[@]}" --on-policy-ahead --out bad
}

refused() {
    succeeds "${plain[@]}" --write-teacher-cache dense.cache
    refuses 2 "--on-policy asks the teacher about new programs, which a --teacher-cache does not hold" "${own[@]}" --teacher-cache dense.cache --out bad
    refuses 2 "--on-policy needs a --teacher" "${own[@]}" --teacher none --out bad
    refuses 2 "--on-policy has nothing to learn from own samples" "${own[@]}" --w-soft 0 --out bad
    refuses 2 "are options of --on-policy" "${plain[@]}" --replay 3 --out bad
    refuses 2 "are options of --on-policy" "${plain[@]}" --on-policy-tokens 24 --out bad
    refuses 2 "--own-weight is an option of --method distillm2" "${own[@]}" --own-weight 0.5 --out bad
    refuses 2 "--method distillm2 has skew KL and skew reverse KL, not --soft-loss jsd; leave that out" "${own[@]}" --method distillm2 --soft-loss jsd --out bad
    succeeds "${plain[@]}" --steps 1 --out before
    refuses 2 "not --soft-loss kl; resume with --soft-loss skl" "$train" --resume --out before --steps 2 --method distillm2
    refuses 2 "leave out --on-policy 0" "${taught[@]}" --method distillm2 --on-policy 0 --out bad
    refuses 2 "--method is 'gkd'; expected one of none, distillm2" "${own[@]}" --method gkd --out bad
    refuses 2 "--on-policy" "${plain[@]}" --on-policy 1.5 --out bad
    refuses 2 "--reinforce learns from rewards and --kl alone; leave out --on-policy" "$train" --reinforce 2 --batch 4 --on-policy 1 \
        --student t/student.safetensors --val-data none --out bad
    succeeds "$quantize" t/student.safetensors q8.safetensors
    refuses 1 "q8.safetensors has weights of 8 bits, which cannot be trained" "${own[@]}" --student q8.safetensors --out bad
    check "nothing was trained" [ ! -e bad/student.safetensors ]
}

run_groups same_as_data limits resumes ahead ranks refused
end_test
