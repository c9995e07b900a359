#!/bin/bash
# infer --dataset: a teacher's programs as a data set. The same programs as infer's, whatever the batch; samples, beams and
# candidates; what --keep keeps; runs that are stopped; bad input.
#
#   test/test_dataset_write.sh build/BF16      the folder with train_distill, infer and eval
#
# GROUPS_TO_RUN names groups, VERBOSE=1 times them. Needs what `make` needs, and for --keep TeX.
. "$(dirname "$0")/check.sh"
programs=$(cd "${1:-build/BF16}" && pwd) || exit 1
begin_test dataset_write
cd "$tmp" || exit 1
. "$root/test/training.sh"
export OMP_NUM_THREADS=${OMP_NUM_THREADS:-2}
student=dev/starter/student.safetensors
"$damage" part dev/starter/test.bin data.bin 0 12
"$damage" part data.bin few.bin 0 4
"$damage" part data.bin two.bin 2 2 # of which the student draws one as it is, with the same program
writes=("$infer" --model $student -q)

kept_of() { sed -n 's/^[^ ]*: \([0-9]*\) of [0-9]* programs kept.*/\1/p' err; }
# The records are the same; the line that says where they came from may differ.
same_records() {
    "$damage" part "$1" a.bin 0 "$3" && "$damage" part "$2" b.bin 0 "$3" && same a.bin b.bin
}

succeeds "${writes[@]}" --dataset all.bin data.bin
check "all are kept" [ "$(kept_of)" = 12 ]
check "nothing else is left" [ -z "$(ls -d all.bin.* 2>/dev/null)" ]

greedy() {
    local i
    for i in 1 5; do
        succeeds "${writes[@]}" --dataset other.bin data.bin --batch $i --threads $i
        check "the same with --batch $i" same all.bin other.bin
    done
    succeeds "$eval" --model $student --data all.bin --greedy
    check "they are the programs that the model writes" grep -q ' 100.00%$' out
    "$damage" image data.bin 0.png 3 && "$damage" image all.bin 1.png 3
    check "the images are the data's" same 0.png 1.png
    succeeds "$train" --data all.bin --val-data all.bin --teacher none --student "$shape" --batch 4 --steps 2 --out taught
    succeeds "${writes[@]}" --dataset again.bin all.bin
    check "of its own programs the model writes the same" same_records all.bin again.bin 12
    succeeds "${writes[@]}" --dataset few2.bin few.bin --weights q8 --prefix '\documentclass'
}

sampled() {
    local seed=(--samples 3 --temperature 1.2 --seed 7)
    succeeds "${writes[@]}" --dataset three.bin few.bin "${seed[@]}"
    check "up to three programs an image" eval 'at_least "$(kept_of)" 5 && at_least 12 "$(kept_of)"'
    check "all are accounted for" eval '[ "$(grep -o "[0-9]* \(of\|cut\|written before\)" err | grep -v of | awk -v k="$(kept_of)" "{ k += \$1 } END { print k }")" = 12 ]'
    succeeds "${writes[@]}" --dataset other.bin few.bin "${seed[@]}" --batch 1
    check "the draws do not depend on the batch" same three.bin other.bin
    succeeds "${writes[@]}" --dataset other.bin few.bin "${seed[@]:0:4}" --seed 8
    check "another seed draws others" differ three.bin other.bin
    succeeds "${writes[@]}" --dataset one.bin few.bin --samples 2 --top-k 1
    check "equal programs of an image are kept once" grep -q '4 of 8 programs kept; dropped: 4 written before for the same image$' err
    check "they are the greedy ones" same_records one.bin all.bin 4
    succeeds "${writes[@]}" --dataset beam.bin few.bin --beam 3
    check "beam search" [ "$(kept_of)" = 4 ]
    succeeds "${writes[@]}" --dataset beam1.bin few.bin --beam 1
    check "one beam is greedy" same_records beam1.bin all.bin 4
}

stopped() {
    local process size
    last=("${writes[@]}" --dataset part.bin data.bin --batch 2)
    env --default-signal=INT "${last[@]}" >out 2>err &
    process=$!
    wait_for $process eval '[ "$(stat -c %s part.bin.programs.partial 2>/dev/null || echo 0)" -gt 100 ]'
    kill -INT $process
    wait $process
    status=$?
    check "Ctrl-C: status 1 and one sentence, or it was over" \
        eval '[ $status = 0 ] || { [ $status = 1 ] && one_sentence "the same command with --resume goes on"; }'
    succeeds "${last[@]}" --resume
    check "it goes on, and the data set is the same" same part.bin all.bin
    # a journal of all programs, from a run of which nothing is kept
    refuses 1 "no program was kept, so none.bin is not written; the programs are in none.bin.programs.partial" \
        "${writes[@]}" --dataset none.bin data.bin --max-tokens 3
    refuses 1 "none.bin.programs.partial holds programs of an earlier run: --resume goes on with them; remove it" \
        "${writes[@]}" --dataset none.bin data.bin
    refuses 1 "were written with other options" "${writes[@]}" --dataset none.bin data.bin --resume
    refuses 1 "were written with other options" "${writes[@]}" --dataset none.bin data.bin --max-tokens 3 --task formula --resume
    refuses 1 "of another model or other data" "${writes[@]}" --dataset none.bin few.bin --max-tokens 3 --resume
    refuses 1 "of another model or other data" "${writes[@]}" --dataset none.bin data.bin --max-tokens 3 --resume \
        --model dev/starter/teacher.safetensors
    check "nothing was written" [ ! -e none.bin ]
    rm none.bin.programs.partial
    # cut or damaged anywhere, a journal is continued from there
    mkdir cut.bin.partial # in the way of the data set: the journal stays
    refuses 1 "cannot write cut.bin" "${writes[@]}" --dataset cut.bin data.bin
    rmdir cut.bin.partial
    cp cut.bin.programs.partial journal
    for size in 0 20 32 100 700 1000 whole; do
        cp journal cut.bin.programs.partial
        [ $size = whole ] || truncate -s $size cut.bin.programs.partial
        [ $size != 1000 ] || { "$damage" flip cut.bin.programs.partial flipped 3000 && mv flipped cut.bin.programs.partial; }
        succeeds "${writes[@]}" --dataset cut.bin data.bin --resume
        check "cut to $size bytes: the same in the end" same cut.bin all.bin
        check "what was whole is taken over" eval 'grep -q "goes on after [1-9]" err || [ "$size" -lt 200 ]'
    done
}

kept() {
    if ! command -v pdflatex >/dev/null || ! command -v pdftocairo >/dev/null; then
        echo "not tested here: --keep (TeX is not installed)"
        return
    fi
    succeeds "${writes[@]}" --dataset compiling.bin two.bin --temperature 2 --keep compiling
    check "a program with errors is dropped" grep -q '1 of 2 programs kept; dropped: 1 with errors$' err
    check "the drawings are gone" [ ! -e compiling.bin.drawings ]
    succeeds "${writes[@]}" --dataset same.bin two.bin --keep same --jobs 1
    check "a program that draws something else is dropped" grep -q '1 of 2 programs kept; dropped: 1 that draw something else$' err
    succeeds "${writes[@]}" --dataset same3.bin two.bin --keep same --jobs 3
    check "whatever the number of jobs" same same.bin same3.bin
    "$damage" image two.bin 0.png 1 && "$damage" image same.bin 1.png 0
    check "the one that is kept is the right one" same 0.png 1.png
    "$damage" part two.bin one.bin 1 1
    succeeds "${writes[@]}" --dataset best.bin one.bin --candidates 2
    check "the best of candidates" [ "$(kept_of)" = 1 ]
    local search=("${writes[@]}" --search 40 --dataset searched.bin one.bin) process
    env --default-signal=INT "${search[@]}" >out 2>err &
    process=$!
    wait_for $process [ -s searched.bin.programs.partial ]
    kill -INT $process
    wait $process
    status=$?
    check "a search that Ctrl-C ends is not kept, or it was over" \
        eval '[ $status = 0 ] || [ "$(stat -c %s searched.bin.programs.partial)" = 32 ]'
    succeeds "${search[@]}" --resume
    check "resumed: it is searched anew" [ "$(kept_of)" = 1 ]
}

refused() {
    refuses 1 "it is not a dataset" "${writes[@]}" --dataset bad.bin image0.png
    refuses 1 "cannot read nothing.bin" "${writes[@]}" --dataset bad.bin nothing.bin
    refuses 2 "--dataset takes one data set, a .bin file or a pattern in quotes, not 2" "${writes[@]}" --dataset bad.bin data.bin few.bin
    refuses 2 "leave out --json" "${writes[@]}" --dataset bad.bin data.bin --json
    refuses 2 "leave out --output" "${writes[@]}" --dataset bad.bin data.bin -o x
    refuses 2 "--keep must be all, compiling or same, not 'some'" "${writes[@]}" --dataset bad.bin data.bin --keep some
    refuses 2 "--keep is an option of --dataset" "${writes[@]}" image0.png --keep all
    refuses 2 "--resume is an option of --dataset" "${writes[@]}" image0.png --resume
    refuses 2 "--samples cannot be used with --beam" "${writes[@]}" --dataset bad.bin data.bin --beam 2 --samples 2
    refuses 2 "--samples samples; --temperature must not be 0" "${writes[@]}" --dataset bad.bin data.bin --samples 2 --temperature 0
    refuses 1 "--dataset data.bin is the data set that is read; name another file" "${writes[@]}" --dataset data.bin data.bin
    refuses 1 "cannot write none/x.bin.programs: No such file" "${writes[@]}" --dataset none/x.bin data.bin
    cp few.bin damaged.bin && printf x | dd of=damaged.bin bs=1 seek=300 conv=notrunc 2>dd
    refuses 1 "is damaged" "${writes[@]}" --dataset bad.bin damaged.bin
    if command -v pdflatex >/dev/null && command -v pdftocairo >/dev/null; then
        "$damage" word $student word.safetensors
        refuses 1 "--keep same compares with the programs of few.bin, which were made with another tokenizer" \
            "${writes[@]}" --model word.safetensors --dataset bad.bin few.bin --keep same
    fi
    check "nothing was written" [ ! -e bad.bin ]
    mkdir -p small
    if [ "$(id -u)" = 0 ] && mount -t tmpfs -o size=16k tmpfs small 2>/dev/null; then
        refuses 1 "No space left on device" "${writes[@]}" --dataset small/x.bin data.bin
        check "a full disk: no data set" [ ! -e small/x.bin ]
        mount -o remount,size=2m small
        succeeds "${writes[@]}" --dataset small/x.bin data.bin --resume
        check "with room it goes on, and is the same" same small/x.bin all.bin
        check "nothing else is left" [ "$(ls small)" = x.bin ]
        umount small
    else
        echo "not tested here: a full file system (mounting one needs root)"
    fi
}

run_groups greedy sampled stopped kept refused
end_test
