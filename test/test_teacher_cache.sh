#!/bin/bash
# Training from cached teacher outputs: the same bits as from the teacher, what each kind keeps, interrupted writing, caches
# that do not belong to a run, a full disk.
#
#   test/test_teacher_cache.sh build/BF16      the folder with train_distill, infer and test_teacher_cache
#
# GROUPS_TO_RUN names groups, VERBOSE=1 times them. Needs what `make` needs.
. "$(dirname "$0")/check.sh"
programs=$(cd "${1:-build/BF16}" && pwd) || exit 1
begin_test teacher_cache
cd "$tmp" || exit 1
. "$root/test/training.sh"
export OMP_NUM_THREADS=${OMP_NUM_THREADS:-2}

# A teacher with wide logits, and with another image size than the student's.
succeeds "${alone[@]}" --student "${wide/image_size=48/image_size=72}" --steps 4 --lr 0.02 --lr-schedule constant --out t
cp t/student.safetensors teacher.safetensors
writes=("$train" --data train.bin --teacher teacher.safetensors --write-teacher-cache)
plain=("${taught[@]}" --steps 4 --eval-every 2)

write() { # FILE KIND [OPTIONS...]
    local file=$1 kind=$2
    shift 2
    succeeds "${writes[@]}" "$file" --teacher-cache-kind "$kind" "$@"
}

step_lines() { numbers "$1" | grep -v '"val"'; }
val_ce() { grep -o '"val":{"ce":[^,]*' "$1/log.jsonl"; }
first_soft() { number_of "$1/log.jsonl" soft 1; }
same_steps() { [ -s "$1/log.jsonl" ] && [ "$(step_lines "$1")" = "$(step_lines "$2")" ]; }
same_training() { same "$1/student.safetensors" "$2/student.safetensors" && same "$1/state.safetensors" "$2/state.safetensors"; }

write dense.cache dense
check "the bytes a token are printed" grep -q '64 samples, .* tokens, all 512 logits: 102[0-9.]* bytes a token, .* MB in all$' err
check "the name of the cache is the result" [ "$(<out)" = dense.cache ]
check "nothing half-written is left" no_partial

# The weights, the optimizer and the log of the steps are those of a live teacher, and so is what is evaluated of the student.
dense() {
    local options
    for options in "" "--temperature 2 --soft-loss jsd --entropy-low 0.1 --sure 0.2 --w-hard 0.3" "--batch 5 --accum 2"; do
        # shellcheck disable=SC2086
        succeeds "${plain[@]}" --val-data val.bin $options --out live --overwrite
        # shellcheck disable=SC2086
        succeeds "${plain[@]}" --val-data val.bin $options --out cached --overwrite --teacher-cache dense.cache
        check "the steps from a dense cache are those from the teacher: $options" same_steps live cached
        check "so are weights and optimizer: $options" same_training live cached
        check "so is the student's validation: $options" [ "$(val_ce live)" = "$(val_ce cached)" ]
    done
    check "the summary names the teacher" grep -q 'teacher teacher.safetensors: not in memory, all 512 logits from dense.cache' err
    check "no teacher is in memory" grep -q '(teacher 0.0 MB)' err
    succeeds "${plain[@]}" --out half --teacher-cache dense.cache --steps 2 --lr-schedule constant --kd-schedule none
    succeeds "$train" --resume --out half --steps 4
    succeeds "${plain[@]}" --out whole --teacher-cache dense.cache --lr-schedule constant --kd-schedule none
    check "a resumed run has the same steps" same_steps half whole
    check "and the same bits" same_training half whole
}

# The teacher saw the plain images, the student sees changed ones; the first batch has the same programs.
augmented() {
    succeeds "${plain[@]}" --steps 1 --out straight --teacher-cache dense.cache --seed 5
    succeeds "${plain[@]}" --steps 1 --out changed --teacher-cache dense.cache --seed 5 --augment noise=1:40..60
    check "the entropy of the teacher's outputs is that for the plain images" \
        [ "$(number_of changed/log.jsonl entropy 1)" = "$(number_of straight/log.jsonl entropy 1)" ]
    check "the student saw others" [ "$(number_of changed/log.jsonl ce 1)" != "$(number_of straight/log.jsonl ce 1)" ]
}

sparse() {
    local at=(--temperature 2 --kd-schedule none --steps 2) kind
    write topk.cache topk=200 --temperature 2
    check "the bytes of the likeliest" grep -q 'the 200 likeliest of 512 tokens at temperature 2: 81[67].' err
    write all.cache topk=512 --temperature 2
    write sample.cache sample=100 --temperature 2
    check "the bytes of draws" grep -q '100 draws among 512 tokens at temperature 2: 216.' err
    write again.cache sample=100 --temperature 2
    check "the same seed makes the same draws" same sample.cache again.cache
    write other.cache sample=100 --temperature 2 --seed 2
    check "another seed makes others" differ sample.cache other.cache
    succeeds "${plain[@]}" "${at[@]}" --out live2
    for kind in topk all sample; do
        succeeds "${plain[@]}" "${at[@]}" --out $kind --teacher-cache $kind.cache
        check "$kind: the student begins the same" [ "$(number_of $kind/log.jsonl ce 1)" = "$(number_of live2/log.jsonl ce 1)" ]
        check "$kind: the teacher's argmax and entropy are the teacher's" \
            near "$(number_of $kind/log.jsonl entropy 1)" "$(number_of live2/log.jsonl entropy 1)" 1e-5
        check "$kind: the loss with it too" near "$(number_of $kind/log.jsonl hard 1)" "$(number_of live2/log.jsonl hard 1)" 1e-6
    done
    check "all tokens listed: the soft loss is the whole one" near "$(first_soft all)" "$(first_soft live2)" 0.001
    check "some tokens listed: a little less of it" \
        eval 'below "$(first_soft topk)" "$(first_soft live2)" && at_least "$(first_soft topk)" 0.1'
    succeeds "${plain[@]}" "${at[@]}" --out alone --teacher-cache topk.cache --teacher none
    check "without the teacher's file the student begins at random" \
        eval 'grep -q "teacher teacher.safetensors: not in memory" err && ! grep -q "tensors start from" err'
    succeeds "${plain[@]}" "${at[@]}" --out jsd --teacher-cache topk.cache --soft-loss jsd --entropy-low 0.1 --sure 0.2
}

# Writing that was stopped goes on, whatever state it was left in, and the file is the same in the end.
stopped() {
    local bytes process
    goes_on() { # N
        succeeds "${writes[@]}" x.cache
        check "$1 of 64 samples were there" grep -q "x.cache: goes on after $1 of 64 samples" err
        check "the cache is the same" same x.cache dense.cache
        check "nothing half-written is left" no_partial
        rm -f x.cache
    }
    bytes=$(stat -c %s dense.cache)
    cp dense.cache x.cache.partial
    goes_on 64
    cp dense.cache x.cache.partial && dd if=/dev/zero of=x.cache.partial bs=1 seek=$((bytes / 2)) count=3000 conv=notrunc 2>dd
    succeeds "${writes[@]}" x.cache
    check "some samples were there" grep -qE "goes on after (5[0-9]|6[0-3]) of 64 samples" err
    check "what was damaged is written again" same x.cache dense.cache
    rm x.cache
    head -c 5000 dense.cache >x.cache.partial # of another size: begun anew
    succeeds "${writes[@]}" x.cache
    check "a cut file is begun anew" same x.cache dense.cache
    cp dense.cache x.cache.partial
    write x.cache topk=4
    check "and so is one of another kind" differ x.cache dense.cache
    succeeds "${writes[@]}" dense.cache
    check "a complete cache is left alone" grep -q 'dense.cache is complete already' err
    # by a signal
    "$damage" part "$starter" big.bin 0 600
    last=("${writes[@]}" big.cache --data big.bin)
    env --default-signal=INT "${last[@]}" >out 2>err &
    process=$!
    wait_for $process test -s big.cache.partial
    kill -INT $process
    wait $process
    status=$?
    check "Ctrl-C: status 1 and one sentence, or it was over" \
        eval '[ $status = 130 ] || [ $status = 0 ] || { [ $status = 1 ] && one_sentence "the same command continues"; }'
    succeeds "${last[@]}"
    succeeds "${writes[@]}" straight.cache --data big.bin --batch 16
    check "the bits are those without a stop" same big.cache straight.cache
}

refused() {
    "$damage" part "$starter" other.bin 64 64
    "$damage" word teacher.safetensors word.safetensors
    refuses 1 "dense.cache holds the teacher's outputs for other data (64 samples) than other.bin (64 samples)" \
        "${plain[@]}" --data other.bin --out bad --teacher-cache dense.cache
    refuses 1 "another tokenizer (fingerprint" "${plain[@]}" --teacher none --tokenizer word.safetensors --out bad --teacher-cache dense.cache
    refuses 1 "another tokenizer (fingerprint" "${writes[@]}" bad.cache --teacher word.safetensors
    refuses 1 "dense.cache holds the outputs of another teacher (teacher.safetensors) than --teacher dev/starter/teacher.safetensors; name that one, or --teacher none" \
        "${plain[@]}" --teacher dev/starter/teacher.safetensors --out bad --teacher-cache dense.cache
    write four.cache topk=4 --temperature 2
    refuses 1 "four.cache was made for one temperature: give --temperature 2 --kd-schedule none" \
        "${plain[@]}" --out bad --teacher-cache four.cache
    refuses 1 "four.cache was made for one temperature" \
        "${plain[@]}" --out bad --teacher-cache four.cache --kd-schedule none --temperature 3
    write draws.cache sample=4 --temperature 2
    refuses 1 "draws.cache holds random draws, which stand for the teacher in KL alone; leave out --soft-loss jsd" \
        "${plain[@]}" --out bad --teacher-cache draws.cache --kd-schedule none --temperature 2 --soft-loss jsd
    refuses 1 "it is not a teacher cache" "${plain[@]}" --out bad --teacher-cache train.bin
    refuses 1 "not a teacher cache, or cut off" "${plain[@]}" --out bad --teacher-cache text.txt
    refuses 1 "the file is empty" "${plain[@]}" --out bad --teacher-cache empty
    head -c -100 dense.cache >cut.cache
    refuses 1 "it is cut off or was added to" "${plain[@]}" --out bad --teacher-cache cut.cache
    "$damage" flip dense.cache flipped.cache 2000000
    refuses 1 "are damaged (CRC-32" "${plain[@]}" --epochs 1 --steps 0 --out bad --teacher-cache flipped.cache
    refuses 2 "--teacher-cache-kind is 'topk=0'" "${writes[@]}" bad.cache --teacher-cache-kind topk=0
    refuses 1 "asks for more tokens than the teacher's vocabulary of 512" "${writes[@]}" bad.cache --teacher-cache-kind topk=513
    refuses 2 "is an option of --write-teacher-cache" "${plain[@]}" --out bad --teacher-cache dense.cache --teacher-cache-kind topk=4
    refuses 2 "exclude each other" "${writes[@]}" bad.cache --teacher-cache dense.cache
    refuses 2 "leave out --resume" "${writes[@]}" bad.cache --resume --out half
    refuses 2 "needs a --teacher" "${writes[@]}" bad.cache --teacher none
    refuses 2 "--w-embed compares image tokens" "${plain[@]}" --out bad --teacher-cache dense.cache --w-embed 1
    refuses 2 "--w-layer compares hidden states" "${plain[@]}" --out bad --teacher-cache dense.cache --w-layer 1
    refuses 1 "every sample of train.bin has more than 2 text tokens" "${writes[@]}" bad.cache --max-tokens 2
    refuses 1 "cannot write folder: it is a folder" "${writes[@]}" folder
    refuses 1 "cannot write none/bad.cache: No such file" "${writes[@]}" none/bad.cache
    mkdir -p small
    if [ "$(id -u)" = 0 ] && mount -t tmpfs -o size=1m tmpfs small 2>/dev/null; then
        refuses 1 "cannot write small/bad.cache, which will have 2." "${writes[@]}" small/bad.cache
        check "a full disk: nothing is left" [ -z "$(ls small)" ]
        umount small
    else
        echo "not tested here: a cache on a full file system (mounting one needs root)"
    fi
    check "no cache was left" [ ! -e bad.cache ]
}

counts "test_teacher_cache" "$programs/test_teacher_cache"
run_groups dense augmented sparse stopped refused
end_test
