#!/bin/bash
# End-to-end tests of train_distill, infer, eval and quantize: what a user does with them, and what a user does wrong.
#
#   test/test_programs.sh build/BF16 [quick]      the folder with the programs
#
# quick: without the options of the objective, with one kind of run that is resumed, and fewer kills. GROUPS_TO_RUN names
# groups, VERBOSE=1 times them. Needs what `make` needs: a compiler for the helper damage.c, bash and coreutils.
. "$(dirname "$0")/check.sh"
programs=$(cd "${1:-build/BF16}" && pwd) || exit 1
quick=${2:-}
begin_test programs
cd "$tmp" || exit 1
. "$root/test/training.sh"
cp "$root/test/fixtures/images/cmyk.jpg" .
few=${shape/image_size=48/image_size=24}

# ---- training ----

training() {
    succeeds "${alone[@]}" --student "$wide" --steps 60 --lr 0.01 --val-data val.bin --eval-every 30 --out teacher
    for f in student best state; do check "$f.safetensors is there" [ -s teacher/$f.safetensors ]; done
    check "the best student is printed" [ "$(cat out)" = teacher/best.safetensors ]
    check "no partial files" no_partial
    check "the log has every field" eval '[ "$("$damage" json teacher/log.jsonl loss step ce accuracy lr norm \
        tokens_per_second peak_share | grep -cv -e "- ")" = 60 ]'
    check "the log has 62 lines" [ "$(wc -l <teacher/log.jsonl)" = 62 ]
    check "the log has two validations" [ "$(grep -c '"val":{' teacher/log.jsonl)" = 2 ]
    check "the loss falls" below "$(number_of teacher/log.jsonl loss 60)" 3.5
    cp teacher/student.safetensors teacher.safetensors
    "$damage" nan teacher.safetensors nan.safetensors lm.embed
    refuses 1 "already holds a trained student" "${alone[@]}" --student "$shape" --steps 2 --out teacher
    succeeds "${alone[@]}" --student "$shape" --steps 2 --out teacher --overwrite
    check "--overwrite starts anew" has_lines teacher/log.jsonl 2
    succeeds "${taught[@]}" --steps 16 --lr 0.01 --warmup 2 --out student
    check "the log has the teacher's fields" eval '[ "$("$damage" json student/log.jsonl soft hard agreement entropy \
        gate | grep -cv -e "- ")" = 16 ]'
    check "the loss falls" below "$(number_of student/log.jsonl loss 16)" "$(number_of student/log.jsonl loss 1)"
    succeeds "${alone[@]}" --student "$shape" --val-data val.bin --eval-batches 1 --lr 0 --steps 40 --eval-every 2 \
        --patience 2 --out patient
    check "--patience stops early" grep -q '^stopped early: no better validation for 2 evaluations' err
    check "after the third evaluation" [ "$("$damage" json patient/log.jsonl loss | wc -l)" = 6 ]
    if [ -w /dev/full ]; then
        last=("${alone[@]}" '>/dev/full')
        "${alone[@]}" --student "$shape" --steps 1 --out unprinted >/dev/full 2>err
        status=$?
        check "a name that cannot be printed is an error" eval '[ $status = 1 ] && one_sentence "cannot write the name"'
        check "the run is complete" [ -s unprinted/student.safetensors ]
    fi
    succeeds "$train" --help
    check "--help names every group" eval '[ "$(grep -c ":$" out)" -ge 5 ]'
}

# ---- going on bit for bit ----

resume_case() { # NAME OPTIONS...
    local name=$1
    shift
    succeeds "$@" --steps 60 --eval-every 6 --out "$name-a"
    interrupted INT 8 "$name-b" "$@" --steps 60 --eval-every 6
    check "an interrupt saves and ends with status 0" [ $status = 0 ]
    check "an interrupt says so" grep -q '^interrupted: saved step' err
    succeeds "$train" --resume --out "$name-b"
    check "$name: resumed after an interrupt, the same bits" same_run "$name-a" "$name-b"
    check "$name: resumed after an interrupt, the same schedule" eval '! grep -q "now ends after" err'
    interrupted KILL 15 "$name-c" "$@" --steps 60 --eval-every 6
    succeeds "$train" --resume --out "$name-c"
    check "$name: resumed after kill -9, the same bits" same_run "$name-a" "$name-c"
    rm -rf "$name-b" "$name-c"
}

resuming() {
    resume_case frozen "${taught[@]}" --train lm
    [ -z "$quick" ] || return 0
    resume_case plain "${alone[@]}" --student "$shape" --augment all=0.3,light=0.3 --load-threads 3 --w-ce 3
    resume_case val "${alone[@]}" --student "$shape" --val-data val.bin --patience 50
    resume_case taught "${taught[@]}" --accum 2 --alpha 0.7 --kd-schedule image2tikz
    local maps=(--w-embed 0.5 --w-layer 0.3) # through learned maps, which are trained too
    resume_case embed "${taught[@]}" "${maps[@]}" --recompute activations
    succeeds "${taught[@]}" "${maps[@]}" --steps 60 --eval-every 6 --out kept
    check "--recompute gives the same bits" same_run embed-a kept
    succeeds "${taught[@]}" "${maps[@]}" --steps 60 --eval-every 6 --threads 1 --out one
    succeeds "${taught[@]}" "${maps[@]}" --steps 60 --eval-every 6 --threads 2 --out two
    check "1 and 2 threads give the same bits" same_run one two
    check "the machine's threads give the same bits" same_run one kept
    succeeds "${taught[@]}" "${maps[@]}" --steps 60 --eval-every 6 --seed 2 --out seed
    check "another seed gives another student" differ seed/student.safetensors kept/student.safetensors

    succeeds "${taught[@]}" --steps 1 --lr 0 --out unmoved
    local t
    for t in vision.patch.weight connector.weight lm.embed; do
        "$damage" tensor unmoved/student.safetensors $t >before
        "$damage" tensor frozen-a/student.safetensors $t >after
        [ $t = lm.embed ] && check "--train lm trains the decoder" differ before after
        [ $t = lm.embed ] || check "--train lm leaves $t as it was" same before after
    done
    mv one moved
    succeeds "$train" --resume --out moved --steps 62
    check "a moved folder goes on in its place" [ "$(number_of moved/log.jsonl step 62)" = 62 -a ! -e one ]
    succeeds "$train" --resume --out moved --steps 62
    check "a finished run says so" grep -q 'has all of its 62 steps already' err
    succeeds "$train" --config moved/options.txt --out again --steps 2
    check "recorded options serve as --config" \
        [ "$(number_of again/log.jsonl loss 1)" = "$(number_of two/log.jsonl loss 1)" ]
}

# ---- adapters (LoRA) ----

# Stopped after 7 of 12 steps and resumed: the same bits as without a stop.
adapters_resumed() { # NAME OPTIONS...
    local name=$1
    shift
    succeeds "$@" --lr-schedule constant --warmup 0 --eval-every 4 --steps 12 --out "$name-a"
    succeeds "$@" --lr-schedule constant --warmup 0 --eval-every 4 --steps 7 --out "$name-b"
    succeeds "$train" --resume --out "$name-b" --steps 12
    for f in adapter state; do
        check "$name: resumed, the same $f" same "$name-a/$f.safetensors" "$name-b/$f.safetensors"
    done
}

adapters_refused() { # BASE
    local lora=("${alone[@]}" --student "$1" --lora 4 --steps 1 --out bad) files=$1
    refuses 2 'there is no layer "head"; the layers are qkv, out, gate_up and down' "${lora[@]}" --lora-targets qkv,head
    refuses 2 "--lora" "${lora[@]}" --lora 0
    refuses 1 "rank 1000 is too large: lm.0.qkv.weight is a matrix of" "${lora[@]}" --lora 1000
    refuses 2 "--lora trains adapters of a model that is there" "${lora[@]}" --student "$shape"
    refuses 2 "leave out --train" "${lora[@]}" --train lm
    refuses 2 "are options of --lora RANK" "${alone[@]}" --student "$1" --lora-alpha 3 --steps 1 --out bad
    refuses 1 "already holds a trained student" "${lora[@]}" --out lora-a
    refuses 1 "has --lora 4 --lora-alpha 8 --lora-targets all, and its adapters cannot change" \
        "$train" --resume --out lora-a --lora 8
    refuses 1 "has --lora 4 --lora-alpha 8 --lora-targets all, and its adapters cannot change" \
        "$train" --resume --out lora-a --lora-targets qkv
    refuses 1 "teacher.safetensors is another model than the one whose adapters" \
        "$train" --resume --out lora-a --student teacher.safetensors --steps 13
    refuses 1 "trains the whole student and has no adapters" "$train" --resume --out base --lora 4
    "$quantize" -q "$1" lora-q8.safetensors
    refuses 1 "lora-q8.safetensors has weights of 8 bits" "${lora[@]}" --student lora-q8.safetensors
    cp lora-a/adapter.safetensors cut-adapter.safetensors && truncate -s -10 cut-adapter.safetensors
    for p in "$infer image0.png --model" "$eval --data val.bin --model" "$quantize -q out.safetensors"; do
        files="$1 --lora"
        [[ $p == "$quantize"* ]] && p="$quantize -q" files="$1 out.safetensors --lora"
        refuses 1 "is an adapter of another model than teacher.safetensors; it was trained on $1" \
            $p ${files/$1/teacher.safetensors} lora-a/adapter.safetensors
        refuses 1 "not an adapter of tikz.c" $p $files "$1"
        refuses 1 "cut-adapter.safetensors" $p $files cut-adapter.safetensors
        [[ $p == "$quantize"* ]] || refuses 1 "has weights of 8 bits, and an adapter needs the model that it was made of" \
            $p ${files/$1/lora-q8.safetensors} lora-a/adapter.safetensors
        refuses 1 "missing.safetensors" $p $files missing.safetensors
    done
    refuses 1 "tikz.c/lora/1, expected tikz.c/1" "$infer" --model lora-a/adapter.safetensors image0.png
    refuses 2 "--lora and --weights exclude each other" "$quantize" --weights q8 --lora lora-a/adapter.safetensors "$1" x
    refuses 2 "give exactly one --model" "$eval" --model "$1" --model "$1" --lora lora-a/adapter.safetensors
    check "nothing is left of what was refused" eval '[ ! -e out.safetensors ] && no_partial'
}

adapters() {
    local base=base/student.safetensors lora f
    succeeds "${alone[@]}" --student "$wide" --steps 20 --lr 0.01 --out base
    lora=("${alone[@]}" --student $base --lora 4 --lora-targets all --lr 0.02)
    cp $base before.safetensors
    adapters_resumed lora "${lora[@]}" --lora-dropout 0.2 --val-data val.bin --accum 2
    adapters_resumed lora-taught "${lora[@]}" --teacher teacher.safetensors --kd-schedule none --recompute blocks --w-layer 0.4
    check "the base is as it was" same $base before.safetensors
    check "the best adapter is printed" [ "$(cat out)" = lora-taught-b/adapter.safetensors ]
    check "no student is written" [ ! -e lora-a/student.safetensors -a ! -e lora-a/best.safetensors ]
    check "what is trained is said, beside all weights" eval 'grep -Eq "^lora: rank 4, alpha 8, dropout 0, 9 layers" err &&
        awk "/^lora: what is trained takes/ { exit !(\$6 > 0 && \$6 * 2 < \$17) }" err'
    succeeds "${lora[@]}" --lr 0.02 --steps 2 --seed 2 --out lora-seed
    check "another seed gives another adapter" differ lora-seed/adapter.safetensors lora-b/adapter.safetensors
    for f in adapter best_adapter; do check "$f is there" [ -s lora-a/$f.safetensors ]; done

    succeeds "$quantize" -q --lora lora-a/adapter.safetensors $base merged.safetensors
    succeeds "$eval" --data val.bin --model $base --json plain.json
    succeeds "$eval" --data val.bin --model $base --lora lora-a/adapter.safetensors --json with.json
    succeeds "$eval" --data val.bin --model merged.safetensors --json merged.json
    check "a validation drops nothing" near "$(sed -n 's/^{"step":12,"val":{"ce":\([0-9.e+-]*\).*/\1/p' lora-a/log.jsonl)" \
        "$("$damage" json with.json ce)" 1e-4
    check "the adapter has learned" below "$("$damage" json with.json ce)" "$("$damage" json plain.json ce)"
    run env PATH=/nowhere "$eval" --data val.bin --baseline $base --model $base --lora lora-a/adapter.safetensors --report adapted
    check "a report keeps the programs of the base and of the adapter apart" [ "$(ls adapted/programs-* | wc -l)" = 2 ]
    check "merged weights are measured alike" near "$("$damage" json merged.json ce)" "$("$damage" json with.json ce)" 0.02
    succeeds "$infer" --model $base --lora lora-a/adapter.safetensors --weights q8 --max-tokens 8 image0.png
    succeeds "$infer" --model $base --lora lora-a/adapter.safetensors --beam 2 --max-tokens 8 image0.png image1.png
    adapters_refused $base
    succeeds "${alone[@]}" --student "$shape" --steps 1 --out lora-seed --overwrite
    check "--overwrite removes the adapters" [ -s lora-seed/student.safetensors -a ! -e lora-seed/adapter.safetensors ]
    mv $base moved.safetensors
    refuses 1 "cannot read base/student.safetensors, the model that the adapters belong to" "$train" --resume --out lora-b --steps 13
    succeeds "$train" --resume --out lora-b --steps 13 --student moved.safetensors
}

# Images of another shape than the teacher's: everything that sees images.
rectangular() {
    local flat=${shape/image_size=48/image_height=16},vision.image_width=96,vision.letter=5 key taught_flat
    resume_case flat "${taught[@]}" --student "$flat" --augment light --steps 60 --lr 0.01
    check "a rectangular file has a height in place of the size" eval 'grep -aq vision.image_height flat-a/student.safetensors &&
        ! grep -aq vision.image_size flat-a/student.safetensors && ! grep -aq vision.image_height teacher.safetensors'
    check "it says how high letters are, and other files do not" eval 'grep -aq vision.letter flat-a/student.safetensors &&
        ! grep -aq vision.letter teacher.safetensors'
    "$damage" json flat-a/log.jsonl loss >losses
    check "the loss falls" below "$(tail -1 losses)" "$(head -1 losses)"
    for key in rows columns; do "$damage" tensor flat-a/student.safetensors vision.position.$key >$key; done
    succeeds "$train" --resume --out flat-a --steps 61
    for key in rows columns; do
        "$damage" tensor flat-a/student.safetensors vision.position.$key >after
        check "the positions of $key are trained" differ $key after
    done
    succeeds "$quantize" -q flat-a/student.safetensors flat-q8.safetensors
    for key in flat-a/student flat-q8; do
        succeeds "$infer" --model $key.safetensors --max-tokens 8 --show --attention maps image0.png image1.png
        check "$key: --show draws each image in 80 columns and 14 rows, two a line" eval \
            '[ "$(grep -c "▀" err)" = 14 ]'
        check "$key: pictures of the attention" [ -s maps/image0.attention/index.html ]
        succeeds "$eval" --model $key.safetensors --teacher teacher.safetensors --data val.bin --no-greedy
    done
    resume_case flat-grouped "${alone[@]}" --student "$flat" --group-by-width --accum 2
    check "the file has the whole width" grep -aq 'vision.image_width":"96"' flat-grouped-a/student.safetensors
    taught_flat=("${taught[@]}" --teacher flat-a/student.safetensors --w-embed 0.1 --group-by-width --steps 6)
    succeeds "${taught_flat[@]}" --student "$flat" --out flat-alike
    succeeds "${taught_flat[@]}" --student "$flat" --w-embed 0 --train lm --init teacher --val-data val.bin --eval-every 2 --out flat-shared
    check "the teacher's encoder is shared" grep -q "which encodes the images for both" err
    refuses 1 "--group-by-width is for models whose images begin at the left edge, those with vision.letter; the student has none" \
        "${alone[@]}" --student "$shape" --group-by-width --steps 1 --out refused
    refuses 1 "the teacher has none" "${taught[@]}" --student "$flat" --group-by-width --steps 1 --out refused
    refuses 1 "16 x 48 pixels with letters of 5; its own have 16 x 96" \
        "${taught_flat[@]}" --student "${flat/width=96/width=48}" --w-embed 0 --out refused
    refuses 1 "multiples of 64 pixels wide, for patches to be joined into tokens, and the models' have 96" \
        "${alone[@]}" --student "$flat,connector.concat=8" --group-by-width --steps 1 --out refused
    refuses 2 "--group-by-width is not for --on-policy" "${taught_flat[@]}" --student "$flat" --on-policy 0.5 --out refused
    refuses 2 "--group-by-width is not for --method distillm2" \
        "${taught_flat[@]}" --student "$flat" --w-embed 0 --method distillm2 --out refused
    refuses 2 "--group-by-width is not for --reinforce" \
        "$train" --data train.bin --student flat-a/student.safetensors --teacher none --reinforce 2 --group-by-width --out refused
    succeeds "$infer" --model flat-a/student.safetensors --draft flat-q8.safetensors --max-tokens 8 image0.png
    succeeds "$infer" --model teacher.safetensors --draft flat-q8.safetensors --max-tokens 8 image0.png
    succeeds "${alone[@]}" --student flat-a/student.safetensors --steps 1 --train lm --out flat-again
    for key in vision.position.rows vision.patch.weight; do
        "$damage" tensor flat-a/student.safetensors $key >before
        "$damage" tensor flat-again/student.safetensors $key >after
        check "--student with a rectangular file keeps $key" same before after
    done
    for key in "vision.image_height=20,vision.image_width=96|20 x 96 pixels are not multiples of vision.patch 8" \
        "vision.image_width=96|vision.image_height and vision.image_width belong together" \
        "vision.image_height=0|vision.image_height is \"0\"" "vision.letter=-1|vision.letter is \"-1\"" \
        "vision.letter=8|vision.letter is for rectangular images" \
        "vision.image_height=16,vision.image_width=96,vision.letter=17|vision.letter 17 is higher than the images, 16 pixels" \
        "vision.image_height=16,vision.image_width=96,connector.kind=strips,connector.concat=3|is not a multiple of the 2 rows"; do
        refuses 2 "${key#*|}" "${alone[@]}" --student "$shape,${key%|*}" --steps 1 --out refused
    done
}

accumulating() {
    local a b i
    succeeds "${taught[@]}" --w-layer 0.5 --batch 16 --steps 6 --out whole
    succeeds "${taught[@]}" --w-layer 0.5 --batch 8 --accum 2 --steps 6 --out halves
    for i in 1 2 3 4 5 6; do
        a=$(number_of whole/log.jsonl loss $i) b=$(number_of halves/log.jsonl loss $i)
        check "step $i: --batch 16 ($a) and --batch 8 --accum 2 ($b)" near "$a" "$b" 0.003
    done
}

# ---- every option of the objective ----

layers_refused() {
    local layers=("${taught[@]}" --steps 1 --out bad --w-layer 1) form="is not even, nor pairs of layers of student and teacher"
    refuses 1 "--layer-pairs: 1:2 names layer 2 of the teacher, whose language model has 1" "${layers[@]}" --layer-pairs 1:2
    refuses 1 "--layer-pairs: 4:1 names layer 4 of the student, whose language model has 1" "${layers[@]}" --layer-pairs 4:1
    refuses 2 "--layer-pairs: layer 2 of the student is named twice" "${layers[@]}" --layer-pairs 2:1,1:1,2:3
    for pairs in "" 1 1: 1:2, 0:1 1:-1 1:2.5 1:2,,2:3 uneven; do
        refuses 2 "--layer-pairs: '$pairs' $form" "${layers[@]}" --layer-pairs "$pairs"
    done
    refuses 2 "--layer-loss is 'l1'; expected one of cosine, mse" "${layers[@]}" --layer-loss l1
    refuses 2 "--w-layer needs a --teacher" "${layers[@]}" --teacher none
    refuses 2 "are options of --w-layer" "${taught[@]}" --steps 1 --out bad --layer-loss mse
}

objective() {
    succeeds "${taught[@]}" --steps 3 --out objective --overwrite
    log_of objective >objective.log
    local options entropy
    entropy=$("$damage" json objective/log.jsonl entropy | awk 'NR == 1 { print 0.9 * $1 }')
    for options in "--soft-loss reverse-kl" "--soft-loss jsd" "--soft-loss jsd --jsd-beta 0.1" "--soft-loss skl" "--soft-loss srkl --skew 0.3" "--w-hard 1" \
        "--w-embed 1" "--w-layer 1" "--w-layer 0.1 --layer-loss mse --layer-pairs 1:1" "--entropy-low $entropy" "--entropy-low $entropy --entropy-high 99" \
        "--sure 0.75" "--sure 0.01 --sure-factor 0" "--kd-schedule image2tikz" "--kd-schedule none" "--temperature 3" \
        "--alpha 0.1" "--w-ce 0" "--w-soft 0" "--chunk 7" \
        "--lr-schedule linear" "--lr-schedule constant" "--lr-schedule multistep" "--warmup 2" "--clip 0" \
        "--decay 0.5" "--beta1 0.5" "--beta2 0.5" "--augment light" "--augment blur=0.5,pad" "--init none" "--max-tokens 60" \
        "--train connector" "--train vision,lm" "--cache 0" "--epochs 1 --steps 0"; do
        succeeds "${taught[@]}" --steps 3 $options --out objective --overwrite
        log_of objective >options.log
        check "$options: every loss is a number" eval '! grep -q "(" options.log'
        case $options in
        --chunk* | --cache* | --sure\ 0.75 | --beta?\ *) ;; # these need not change three steps
        *) check "$options has an effect" differ options.log objective.log ;;
        esac
    done
    layers_refused
    succeeds "${taught[@]}" --steps 3 --student "${shape/image_size=48/image_size=96}" --out objective --overwrite
    check "images of two sizes" has_lines objective/log.jsonl 3
    # What a teacher says does not depend on the size of the student's images: it looks at its own.
    local large=${shape/image_size=48/image_size=96} size
    succeeds "${alone[@]}" --student "$large" --steps 30 --lr 0.01 --out large
    for size in 48 96; do
        succeeds "${taught[@]}" --teacher large/student.safetensors --student "${shape/=48/=$size}" --lr 0 --steps 1 \
            --w-soft 1 --out sees-$size
    done
    check "a teacher sees images of its own size" near "$(number_of sees-48/log.jsonl entropy 1)" \
        "$(number_of sees-96/log.jsonl entropy 1)" 1e-6
    # a limit above the longest text, yet below the multiple of 8 that batches are rounded up to
    succeeds "${taught[@]}" --max-tokens $(($("$damage" longest train.bin) + 1)) --epochs 1 --out objective \
        --overwrite
    check "an odd --max-tokens leaves out nothing" eval '! grep -q "left out" err'
    succeeds "${alone[@]}" --student "$shape,lm.tied=true,lm.rope_scaling=linear,lm.rope_factor=2" --steps 3 \
        --out objective --overwrite
    succeeds "${alone[@]}" --student teacher.safetensors --steps 1 --lr 0 --out objective --overwrite
    check "a student from a file, learning rate 0: unchanged" same teacher.safetensors objective/student.safetensors
    succeeds "${taught[@]}" --student "$wide" --init teacher --steps 1 --lr 0 --out objective --overwrite
    check "--init teacher with the same shape: the teacher" same teacher.safetensors objective/student.safetensors
    cutting
}

# Students whose layers and widths are chosen by importance.
cutting() {
    local cut=("${taught[@]}" --init-layers importance --init-width importance --steps 1 --lr 0)
    local mid=${wide/lm.layers=1/lm.layers=2} bad=("${cut[@]}" --out bad)
    succeeds "${cut[@]}" --student "$wide" --out objective --overwrite
    check "cut to the same shape: the teacher" same teacher.safetensors objective/student.safetensors
    succeeds "${cut[@]}" --threads 1 --out cut1
    check "every tensor is taken" grep -q '^student: 27 of 27 tensors start from teacher.safetensors' err
    check "the layers are said" grep -q '^student: the layers of its language model are 1 of teacher.safetensors' err
    succeeds "${cut[@]}" --threads 2 --out cut2
    check "1 and 2 threads cut the same student" same cut1/student.safetensors cut2/student.safetensors
    succeeds "$train" --resume --out cut2 --steps 2
    succeeds "${taught[@]}" --student "$mid" --init-layers 1,1 --steps 1 --out cut3
    refuses 1 "--init-layers importance: the student has 2 lm.layers, teacher.safetensors only 1" "${bad[@]}" --student "$mid"
    refuses 1 "--init-layers names layer 2 of teacher.safetensors, whose language model has 1" "${bad[@]}" --init-layers 2
    refuses 1 "--init-layers names 2 layers, the student's language model has 1" "${bad[@]}" --init-layers 1,1
    refuses 2 "--init-layers: '1,' is not even, importance, nor layers" "${bad[@]}" --init-layers 1,
    refuses 2 "--init-width is 'some'; expected one of none, importance" "${bad[@]}" --init-width some
    refuses 2 "--init-layers and --init-width are options of --init" "${bad[@]}" --init none
    refuses 2 "--student teacher.safetensors is a file" "${bad[@]}" --student teacher.safetensors
    refuses 1 "the student has lm.width 64, more than the 48 of" "${bad[@]}" --student "$shape,lm.width=64"
    refuses 1 "the student has lm.ffn 65, more than the 64 of" "${bad[@]}" --student "$shape,lm.ffn=65"
    refuses 1 "the student's heads have 8 channels (lm.head_dim), those of" "${bad[@]}" --student "$shape,lm.head_dim=8"
    refuses 1 "cannot read none.bin" "${bad[@]}" --data none.bin
}

# ---- infer ----

inferring() {
    local model=(--model teacher.safetensors --quiet) f
    succeeds "$infer" "${model[@]}" image0.png
    check "the document begins" grep -q '^\\documentclass' out
    check "--quiet is quiet" eval '! grep -v "stopped after" err'
    cp out greedy.tex
    succeeds "$infer" --model teacher.safetensors image0.png
    check "the time is told" grep -q 'image0.png: first token after' err
    succeeds "$infer" "${model[@]}" image0.png image1.png image2.png
    check "several images are named" [ "$(grep -c '^% image[012].png$' out)" = 3 ]
    succeeds "$infer" "${model[@]}" image0.png -o one.tex
    check "-o FILE: the same text" same one.tex greedy.tex
    check "-o FILE: nothing on stdout" [ ! -s out ]
    succeeds "$infer" "${model[@]}" image0.png image1.png -o new/folder
    check "-o DIR: the same text" same new/folder/image0.tex greedy.tex
    check "-o DIR: both texts" [ -s new/folder/image1.tex ]
    rm new/folder/image0.tex
    succeeds "$infer" "${model[@]}" image0.png -o new/folder
    check "-o with a folder that exists takes one image too" same new/folder/image0.tex greedy.tex
    succeeds "$infer" "${model[@]}" image0.png --max-tokens 3
    check "--max-tokens warns" grep -q 'warning: image0.png: stopped after 3 tokens' err
    cp out cut.tex
    run "$infer" "${model[@]}" image0.png --max-tokens 3 --strict -o strict.tex
    check "--strict: status 1, the text is kept" eval '[ $status = 1 ] && same strict.tex cut.tex'
    succeeds "$infer" "${model[@]}" image0.png --strict

    local sample=("$infer" "${model[@]}" image0.png --temperature 0.8 --top-p 0.95 --top-k 50)
    succeeds "${sample[@]}" --seed 5
    cp out five
    succeeds "${sample[@]}" --seed 5
    check "the same seed, the same sample" same out five
    succeeds "${sample[@]}" --seed 6
    check "another seed, another sample" differ out five
    succeeds "$infer" "${model[@]}" image0.png --temperature 0.01 --top-k 1
    check "top-k 1 is greedy" same out greedy.tex

    "$damage" png pixel.png 1 1 8 2 90 && "$damage" png white.png 64 48 8 2 255
    "$damage" png alpha.png 40 60 8 6 120 && "$damage" png deep.png 60 50 16 2 33
    "$damage" png grey.png 70 30 8 4 10 && "$damage" png bits.png 50 50 1 0 170
    "$damage" png long.png 9000 3 8 0 7 && "$damage" png high.png 3 9000 8 2 7
    "$damage" png clear.png 30 30 8 6 0 && "$damage" png huge.png 20000 20000 1 0 170
    "$damage" png large.png 4000 5000 8 0 99
    for f in {pixel,white,alpha,deep,grey,bits,long,high,clear,large}.png cmyk.jpg; do
        succeeds "$infer" "${model[@]}" "$f" --max-tokens 5
    done
    refuses 1 "huge.png: it has 20000 x 20000 pixels" "$infer" "${model[@]}" huge.png
    mkfifo pipe.png && printf 'version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 9\n' >pointer.png
    refuses 1 "pipe.png: it is not a regular file" "$infer" "${model[@]}" pipe.png
    refuses 1 "pointer.png: it is a Git LFS pointer" "$infer" "${model[@]}" pointer.png
    succeeds "$infer" "${model[@]}" image0.png white.png --max-tokens 5
    check "blank images are named, others not" eval \
        '[ "$(grep -v stopped err)" = "$(grep "^infer: warning: white.png: the image is blank" err)" ]'
    "$damage" png light.png 60 40 8 0 254 && "$damage" png dark.png 60 40 8 0 1
    succeeds "$infer" "${model[@]}" light.png --preprocess plain --max-tokens 9
    check "a margin that is nearly white is named" grep -q 'warning: light.png: .* --trim-near-white' err
    mv out light
    succeeds "$infer" "${model[@]}" light.png --preprocess plain --trim-near-white --max-tokens 9
    check "--trim-near-white cuts it off" eval '! grep -q "nearly white" err'
    succeeds "$infer" "${model[@]}" dark.png --preprocess plain --max-tokens 9
    check "a dark image is named" grep -q 'warning: dark.png: .* --invert' err
    succeeds "$infer" "${model[@]}" dark.png --preprocess plain --invert --max-tokens 9
    check "--invert gives the program of the light image" same out light
    run "$infer" "${model[@]}" image0.png missing.png image1.png -o new/folder
    check "one bad image of three: status 1" [ $status = 1 ]
    check "one bad image of three: one sentence" one_sentence "missing.png"
    check "one bad image of three: no file for it" [ ! -e new/folder/missing.tex ]
    run "$infer" "${model[@]}" image0.png missing.png image1.png --batch 2
    check "one bad image of three, on stdout: the others in their order" \
        [ "$(grep '^% image' out | tr '\n' ' ')" = "% image0.png % image1.png " ]
    together "${model[@]}"
    strange_names "${model[@]}"
    refuses 2 "--batch" "$infer" "${model[@]}" image0.png --batch 1025
    mkdir -p other && cp image0.png other/
    refuses 2 "new/folder/image0.tex" "$infer" "${model[@]}" image0.png other/image0.png -o new/folder
    [ -w /dev/full ] && refuses 1 "/dev/full" "$infer" "${model[@]}" image0.png -o /dev/full
    (cd folder && "$infer" ../image0.png >out 2>err)
    check "no model anywhere: one sentence" grep -q '^infer: error: there is no model here: .*--model$' folder/err
    rm folder/*
    mkdir -p here/out && cp teacher.safetensors here/out/student.safetensors
    check "a trained student is found" eval '(cd here && "$infer" --quiet ../image0.png 2>err) | same - greedy.tex'
    refuses 1 "nowhere/x.tex" "$infer" "${model[@]}" image0.png -o nowhere/x.tex
    refuses 1 "image0.png" "$infer" "${model[@]}" image0.png image1.png -o image0.png
    check "no partial files" no_partial
}

# Programs that are written together: each is the one that is written alone. Batches of up to four use the same products
# as one text; larger ones round otherwise, and then only FP32 can be held to this (test_devices.sh).
together() { # OPTIONS...
    local i options images=(image0.png image1.png image2.png image1.png image0.png)
    head -c 200 image1.png >broken.png
    for options in "" "--temperature 1.2 --top-p 0.95 --top-k 40 --seed 3"; do
        succeeds "$infer" "$@" "${images[@]}" --batch 1 $options
        cp out apart
        check "as many programs as images" [ "$(grep -c '^% image' apart)" = 5 ]
        for i in 2 3 4; do
            succeeds "$infer" "$@" "${images[@]}" --batch $i $options
            check "$i together are as alone ($options)" same out apart
        done
        run "$infer" "$@" image0.png image1.png broken.png image1.png image0.png --batch 4 $options
        check "a broken image among good ones: status 1" [ $status = 1 ]
        check "a broken image among good ones: one sentence" one_sentence "broken.png"
        awk '/^% / { n++ } n != 3' apart >others
        check "a broken image among good ones: the others are as they were" same out others
    done
    check "what is drawn differs from image to image" \
        [ "$(awk '/^% / { n++; next } n == 1' apart)" != "$(awk '/^% / { n++; next } n == 5' apart)" ]
    succeeds "$infer" "$@" "${images[@]}" --batch 5
    check "larger batches write as many programs" [ "$(grep -c '^% image' out)" = 5 ]
    succeeds "$infer" "$@" "${images[@]}" --batch 4 --max-tokens 3
    check "--max-tokens stops every one" [ "$(grep -c 'png: stopped after 3 tokens' err)" = 5 ]
    succeeds "${alone[@]}" --student "$shape,lm.heads=32,lm.kv_heads=32,lm.head_dim=64,lm.layers=32,lm.max_positions=131072" \
        --steps 1 --out long
    refuses 1 "64 programs together of up to" "$infer" --model long/student.safetensors --batch 64 \
        $(printf 'image0.png %.0s' {1..64}) -q
    rm -r long
}

# The name of an image can be anything: a line end must not end the comment that holds it, nor an error its line.
strange_names() { # OPTIONS...
    local evil=$'./a\n\\input{b}\e[31m' long
    long=$(printf 'n%.0s' {1..251})
    mkdir -p other && cp image0.png "other/$long.png" && cat image0.png >"$evil.png"
    succeeds "$infer" "$@" --max-tokens 3 "$evil.png" image0.png
    check "a line end in a name stays in the comment" [ "$(head -n 1 out)" = '% ./a?\input{b}?[31m.png' ]
    check "and in the warning" grep -qF 'warning: ./a?\input{b}?[31m.png: stopped' err
    refuses 1 './a?\input{b}?[31m.none: No such file' "$infer" "$@" "$evil.none"
    succeeds "$infer" "$@" "other/$long.png" -o other
    check "a name of 255 bytes" same "other/$long.tex" greedy.tex
    rm -r other "$evil.png"
}

# ---- infer --prefix ----

prefixing() {
    local model=(--model teacher.safetensors --quiet) n begin
    succeeds "$infer" "${model[@]}" image0.png
    cp out greedy.tex
    for n in 1 2 3; do # tokens end with lines, so the text up to there is what the model read when it went on
        begin=$(head -n $n greedy.tex && echo .)
        succeeds "$infer" "${model[@]}" image0.png --prefix "${begin%.}"
        check "after its own first $n lines it goes on as before" same out greedy.tex
    done
    succeeds "$infer" "${model[@]}" image0.png --prefix ""
    check "an empty prefix is none" same out greedy.tex
    begin='\documentclass{article} % a "b" 12.5'
    succeeds "$infer" "${model[@]}" image0.png image1.png --prefix "$begin" -o begun
    check "every document begins with the prefix" [ "$(grep -lF "$begin" begun/image[01].tex | wc -l)" = 2 ]
    succeeds "$infer" --model teacher.safetensors image0.png --prefix "$begin" --max-tokens 60
    check "the prefix counts for --max-tokens, not for the speed" grep -Eq ' [1-5]?[0-9] tokens at' err
    refuses 1 "leaves no room: it has " "$infer" "${model[@]}" image0.png --prefix "$begin" --max-tokens 5 -o bad.tex
    refuses 1 "leaves no room: it has " "$infer" "${model[@]}" image0.png --prefix "$(yes '\draw' | head -c 9999)"
    refuses 1 "'</s>', which is a special token" "$infer" "${model[@]}" image0.png --prefix 'a</s>b' -o bad.tex
    refuses 1 "only ASCII" "$infer" "${model[@]}" image0.png --prefix $'na\xc3\xafve' -o bad.tex
    refuses 1 "not valid UTF-8 at byte 1" "$infer" "${model[@]}" image0.png --prefix $'a\xff' -o bad.tex
    check "no partial files" no_partial
}

# ---- drawing ----

# has_tex WHAT: whether TeX and Poppler are installed; without them it says that WHAT is not tested.
has_tex() {
    command -v pdflatex >/dev/null && command -v pdftocairo >/dev/null && return
    echo "not tested here: $1, which needs TeX and Poppler (scripts/deps.sh tex)"
    return 1
}

drawing() {
    local starter=(--model "$root/dev/starter/student.safetensors" --quiet) image=$root/dev/starter/example.png
    has_tex drawing || return
    export XDG_CACHE_HOME=$tmp/cache
    succeeds "$infer" "${starter[@]}" "$image"
    cp out plain.tex
    succeeds "$infer" "${starter[@]}" "$image" --pdf x.pdf --png x.png --svg x.svg --check
    check "the program is the same" same out plain.tex
    check "a PDF" eval '[ "$(head -c 5 x.pdf)" = %PDF- ]'
    check "an SVG" grep -q '^<svg' x.svg
    succeeds "$infer" "${starter[@]}" x.png
    check "a PNG: infer reads it" grep -q '^.documentclass' out
    cp "$image" twin.png
    succeeds "$infer" "${starter[@]}" "$image" twin.png --png drawn -o drawn
    check "several images: a folder" [ -s drawn/example.png -a -s drawn/twin.png -a -s drawn/example.tex ]
    check "both drawings are the same" same drawn/example.png drawn/twin.png
    succeeds "$infer" "${starter[@]}" twin.png --pdf drawn
    check "one image and a folder" [ -s drawn/twin.pdf ]
    refuses 1 "the program of twin.png does not compile: " "$infer" "${starter[@]}" twin.png --max-tokens 30 --check
    check "the program is written all the same" grep -q '^.documentclass' out
    refuses 1 "cannot write nowhere/x.pdf" "$infer" "${starter[@]}" twin.png --pdf nowhere/x.pdf
    refuses 1 "cannot write /dev/full" "$infer" "${starter[@]}" twin.png --svg /dev/full
    run env PATH=/nowhere "$infer" "${starter[@]}" twin.png --check
    check "without TeX: a sentence, before the model works" eval '[ $status = 1 -a ! -s out ] &&
        grep -q "^infer: error: no TeX engine is installed" err'
    check "no partial files" no_partial
    unset XDG_CACHE_HOME
}

# A model that says of itself what it writes.
telling() {
    local starter=$root/dev/starter/student.safetensors image=$root/dev/starter/example.png
    "$damage" say "$starter" reader.safetensors tokenizer.task formula
    "$damage" say "$starter" figures.safetensors tokenizer.task tikz
    "$damage" say "$starter" poems.safetensors tokenizer.task poem
    refuses 1 "the metadata tokenizer.task is 'poem', tikz or formula was expected" "$infer" -m poems.safetensors "$image"
    refuses 1 "--task tikz: the task of reader.safetensors is formula" "$infer" -m reader.safetensors --task tikz "$image"
    refuses 1 "are for formulas, and $starter writes TikZ" "$infer" -m "$starter" --display "$image"
    refuses 2 "--task must be tikz, formula or auto" "$infer" -m "$starter" --task poem "$image"
    refuses 2 "cannot be used together" "$infer" -m reader.safetensors --display --inline "$image"
    succeeds "$infer" -m figures.safetensors --quiet --task tikz "$image"
    cp out figure.tex
    succeeds "$infer" -m reader.safetensors --quiet --max-tokens 20 "$image"
    cp out formula.tex
    succeeds "$infer" -m "$starter" --quiet --task formula --plain --max-tokens 20 "$image"
    check "--task formula is for models that do not say" same out formula.tex
    check "TikZ goes on" eval '[ "$(head -c 20 figure.tex)" = "$(head -c 20 formula.tex)" ]'
    succeeds "$infer" -m reader.safetensors --quiet --max-tokens 20 --display "$image"
    check "a display" eval '[ "$(cat out)" = "\\[$(cat formula.tex)\\]" ]'
    succeeds "$infer" -m reader.safetensors --quiet --max-tokens 20 --inline "$image" -o inline.tex
    check "in a line of text" eval '[ "$(cat inline.tex)" = "\$$(cat formula.tex)\$" ]'
    run env PATH=/nowhere "$infer" -m reader.safetensors --quiet --max-tokens 20 --inline --json "$image"
    check "JSON says what it is" grep -q '"task":"formula","program":"\$.*\$\\n"' out
    check "JSON says how sure the model was" grep -q '"confidence":0\.[0-9]*' out
    succeeds "$train" --data "$root/dev/starter/val.bin" --val-data none --teacher none --steps 1 --batch 2 --student \
        reader.safetensors --out told
    succeeds "$train" --data "$root/dev/starter/val.bin" --val-data none --teacher none --steps 1 --batch 2 --student tiny \
        --tokenizer reader.safetensors --out told-too
    check "students say it, too" eval 'grep -aq "tokenizer.task.:.formula" told/student.safetensors &&
        grep -aq "tokenizer.task.:.formula" told-too/student.safetensors'
}

# Without --model: a model of figures and one of formulas; the image decides which of them reads it. Images that neither knows.
wild() {
    local there=(env -C both "$infer") name
    python3 "$root/test/odd_images.py" odd || { check "python3 makes images" false; return; }
    mkdir -p both/dev/starter both/dev/formula
    cp "$root/dev/starter/student.safetensors" both/dev/starter/
    run "${there[@]}" --task formula ../odd/formula.png
    check "no reader" grep -q '^infer: error: --task formula: there is no model of formulas here, as .* with --model$' err
    "$damage" say both/dev/starter/student.safetensors both/dev/formula/reader.safetensors tokenizer.task formula
    succeeds "${there[@]}" --max-tokens 9 ../odd/formula.png
    check "a formula" grep -q '^../odd/formula.png: taken for a formula; --task tikz takes it for a figure$' err
    succeeds "${there[@]}" --max-tokens 9 ../odd/figure.png --quiet --verbose
    check "a figure" grep -q '^../odd/figure.png: taken for a figure; --task formula takes it for a formula$' err
    succeeds bash -c '"$@" <odd/formula.png' bash "${there[@]}" --quiet --display --max-tokens 9 ../odd/formula.png ../odd/figure.png -
    check "of both, in their order; only formulas get delimiters" eval '[ $(grep -c "^[%]" out) = 3 ] &&
        [ "$(sed -n "2s/\(..\).*/\1/p" out)" = "\\[" ] && [ "$(grep -c "^.\[" out)" = 2 ]'
    check "standard input is a formula" eval 'grep -A1 "^% stdin" out | tail -n 1 | grep -q "^.\["'
    succeeds "${there[@]}" --quiet --task tikz --max-tokens 9 ../odd/formula.png
    check "--task tikz" grep -q '^.documentclass' out
    run "${there[@]}" --task tikz --display ../odd/formula.png
    check "--task tikz --display" grep -q '^infer: error: --display, --inline and --plain are for formulas' err
    run env -C both PATH=/nowhere "$infer" --json --max-tokens 60 ../odd
    check "odd images: all have an answer" eval '[ $status = 0 -a $(wc -l <out) = 8 ]'
    check "half of them are formulas at first sight" grep -q '^4 of 8 images taken for formulas, the others for figures; --verbose says which$' err
    check "all say how sure the model was" eval '[ $(grep -c "\"confidence\":[01]\.[0-9]*," out) = 8 ]'
    check "a blank image" grep -q 'odd/empty.png: the image is blank' err
    for name in photo noise; do check "a photo: $name" grep -q "odd/$name.png: its colours change from pixel to pixel" err; done
    check "a strip of 10 000 pixels" grep -q "odd/wide.png: little is left of its lines when its 9880 x" err
    check "several formulas at once" grep -q "several.png: the model is not sure of its program (confidence 0.8" err
    check "one that it knows" eval '! grep -q "figure.png: the model is not sure" err'
    succeeds "$infer" --model "$root/dev/starter/student.safetensors" odd/formula.png --max-tokens 9
    check "--model: nothing is told" eval '! grep -q taken err'
    has_tex "stopping a search of both" || return
    last=("${there[@]}" --search 100s ../odd/formula.png ../odd/figure.png -o ../stopped)
    XDG_CACHE_HOME=$tmp/cache env --default-signal=INT "${last[@]}" >out 2>err & local search=$!
    wait_for $search eval '[[ $(<err) == *": score "* ]]'
    kill -INT $search
    wait $search
    status=$?
    check "figures come first; one that was found before Ctrl-C is written, though a formula before it is not" \
        eval '[ $status = 1 -a ! -e stopped/formula.tex ] && grep -q "end{document}" stopped/figure.tex'
    check "... and what is missing is said" [ "$(grep error: err)" = "infer: error: stopped before 1 of the 2 images" ]
}

# ---- infer: inputs, JSON, drafts, clean output, cleaned images ----

# field FILE KEY: the value of a key in a file of one JSON object per line, with python3; without it the check is not made.
field() { python3 -c 'import json,sys; print(json.loads(open(sys.argv[1]).readline())[sys.argv[2]])' "$1" "$2"; }

options() {
    local starter=(--model "$root/dev/starter/student.safetensors" --quiet) image=$root/dev/starter/example.png i
    succeeds "$infer" "${starter[@]}" "$image"
    cp out alone.tex
    "$infer" "${starter[@]}" - <"$image" >out 2>err
    status=$?
    check "standard input" eval '[ $status = 0 ] && same out alone.tex'
    refuses 1 "stdin: it is empty" "$infer" "${starter[@]}" - </dev/null
    refuses 1 "only once" "$infer" "${starter[@]}" - - <"$image"
    mkdir -p shots noshots && cp "$image" shots/a.png && cp "$image" shots/b.png && echo x >shots/note.txt
    succeeds "$infer" "${starter[@]}" shots -o shots-tex
    check "a folder's images" eval 'same shots-tex/a.tex alone.tex && same shots-tex/b.tex alone.tex &&
        [ $(ls shots-tex | wc -l) = 2 ]'
    refuses 1 "there is no image in the folder noshots" "$infer" "${starter[@]}" noshots
    run env PATH=/nowhere "$infer" "${starter[@]}" shots --json
    cp out objects
    check "without TeX, JSON all the same: one object an image" eval '[ $status = 0 ] && [ $(wc -l <objects) = 2 ] &&
        grep -q "programs are not compiled: no TeX engine" err && grep -q "\"compiles\":null" objects'
    if command -v python3 >/dev/null; then
        field objects log_probability >sampled
        succeeds "$infer" "${starter[@]}" shots/a.png --beam 1 --json
        field out log_probability >beamed
        succeeds "$infer" "${starter[@]}" --draft "$root/dev/starter/student.safetensors" shots/a.png --json
        field out log_probability >drafted
        check "JSON: the same log-probability in three ways" python3 -c 'import sys
a, b, c = (float(open(f).read()) for f in sys.argv[1:])
sys.exit(abs(a - b) > 0.02 * abs(a) + 1e-3 or abs(a - c) > 0.02 * abs(a) + 1e-3)' sampled beamed drafted
        field objects program >decoded
        check "JSON: the program" eval 'same <(printf "%s" "$(cat decoded)") <(printf "%s" "$(cat alone.tex)")'
        check "JSON: a log-probability" eval 'python3 -c "import sys; sys.exit(not -50 < float(sys.argv[1]) < 0)" \
            "$(field objects log_probability)"'
    fi
    succeeds "$infer" --model "$root/dev/starter/teacher.safetensors" --quiet "$image"
    mv out teacher.tex
    succeeds "$infer" --model "$root/dev/starter/teacher.safetensors" --draft "$root/dev/starter/student.safetensors" \
        "$image" "$image"
    check "drafts are taken" grep -q '^[1-9][0-9]* of [0-9]* tokens that the draft proposed' err
    succeeds "$infer" --model "$root/dev/starter/teacher.safetensors" --draft "$root/dev/starter/student.safetensors" \
        --quiet "$image"
    check "a draft does not change the program" same out teacher.tex
    succeeds "$infer" "${starter[@]}" "$image" --beam 1
    check "one beam is greedy" same out alone.tex
    succeeds "$infer" "${starter[@]}" shots --beam 4 --json
    check "beams: two equal images, two equal programs" eval '[ $(wc -l <out) = 2 ] &&
        [ "$(sed "s/.*\"program\"//; s/\"seconds.*//" out | sort -u | wc -l)" = 1 ]'
    refuses 2 "--beam must be" "$infer" "${starter[@]}" "$image" --beam 0
    refuses 2 "--beam does not sample" "$infer" "${starter[@]}" "$image" --beam 2 --temperature 1
    refuses 1 "a draft needs the same tokenizer" "$infer" "${starter[@]}" --draft "$root/test/fixtures/gqa.student.safetensors" \
        "$image"
    succeeds "$infer" "${starter[@]}" "$image" --max-tokens 30 --finish
    check "--finish closes what is open" eval '[ "$(tail -n 2 out | head -n 1)" = "\\end{tikzpicture}" ]'
    check "--finish says so" grep -q "stopped after 30 tokens without an end; its last statement was dropped" err
    succeeds "$infer" "${starter[@]}" "$image" --tidy
    check "--tidy: the program is whole" grep -q "end{document}" out
    refuses 2 "--repeat-guard must be on or off" "$infer" "${starter[@]}" "$image" --repeat-guard maybe
    refuses 2 "--preprocess must be auto, plain or detikzify" "$infer" "${starter[@]}" "$image" --preprocess yes
    refuses 2 "--candidates must be" "$infer" "${starter[@]}" "$image" --candidates 0
    refuses 2 "cannot be used together" "$infer" "${starter[@]}" "$image" --candidates 2 --search 3
    refuses 2 "--search must be seconds" "$infer" "${starter[@]}" "$image" --search soon
    refuses 2 "--search must be seconds" "$infer" "${starter[@]}" "$image" --search 0
    refuses 2 "--temperature must not be 0" "$infer" "${starter[@]}" "$image" --search 3 --temperature 0
    succeeds "$infer" "${starter[@]}" "$image" --attention looked
    check "attention: a page and a picture for each token" eval '[ -s looked/index.html ] &&
        [ $(ls looked/*.png | wc -l) = $(grep -c "<img" looked/index.html) ]'
    mkdir -p moreshots && cp "$image" moreshots/a.png
    refuses 2 "would both be written to looks/a.attention" "$infer" "${starter[@]}" shots/a.png moreshots/a.png --attention looks
    check "... and nothing is" [ ! -e looks ]
    refuses 2 "--length-penalty is an option of --beam" "$infer" "${starter[@]}" "$image" --length-penalty 2
    refuses 2 "--exploration is an option of --search" "$infer" "${starter[@]}" "$image" --exploration 2
    refuses 2 "--reward must be" "$infer" "${starter[@]}" "$image" --search 3 --reward beauty
    run env PATH=/nowhere "$infer" "${starter[@]}" shots/a.png nothing.png --json
    check "JSON: an image that cannot be read has its line" eval '[ $status = 1 ] && [ $(wc -l <out) = 2 ] &&
        grep -q "\"image\":\"nothing.png\",\"task\":\"tikz\",\"program\":null" out'
    succeeds "$infer" "${starter[@]}" "$image" --preprocess detikzify
    check "enlarged as DeTikZify does: a program" grep -q "end{document}" out
    run env TIKZ_GRAPHICS=blocks "$infer" "${starter[@]}" "$image" --show
    check "--show draws" grep -q '38;2;' err
    "$damage" png grey.png 60 40 8 0 254
    succeeds "$infer" --model "$root/dev/starter/student.safetensors" --quiet --verbose grey.png --max-tokens 9
    check "--verbose says what was cleaned" grep -q '^grey.png: .*white' err
    check "no partial files" no_partial
}

# Candidates and search, with TeX.
choosing() {
    local starter=(--model "$root/dev/starter/student.safetensors" --quiet) image=$root/dev/starter/example.png i
    has_tex "choosing programs" || return
    export XDG_CACHE_HOME=$tmp/cache
    succeeds "$infer" "${starter[@]}" "$image" --candidates 6 --json
    check "the best candidate compiles and is like the image" eval 'grep -q "\"compiles\":\"clean\"" out &&
        grep -q "\"similarity\":0\.[89]" out'
    succeeds "$infer" "${starter[@]}" "$image" --search 20
    mv out found.tex
    check "a search writes a program" grep -q 'end{document}' found.tex
    succeeds "$infer" "${starter[@]}" "$image" --search 20
    check "the same search gives the same program" same out found.tex
    env --default-signal=INT "$infer" "${starter[@]}" "$image" --search 100s >out 2>err & local search=$! begin=$SECONDS # bash has it ignored
    sleep 3
    kill -INT $search
    wait $search
    check "Ctrl-C ends a search with what it has found" eval '[ $((SECONDS - begin)) -lt 60 ] && grep -q "end{document}" out'
    succeeds "$infer" "${starter[@]}" "$image" --max-tokens 30 --finish --check
    for i in search candidates; do
        succeeds "$infer" "${starter[@]}" "$image" --$i 2 --prefix hello --max-tokens 7 --json # which is no document
        check "--$i: where nothing is drawn, no similarity is known" grep -q '"compiles":"no".*"similarity":null' out
    done
    succeeds "$infer" "${starter[@]:0:2}" "$image" "$image" --search 3 --temperature 2 # three at a time: all from the beginning
    grep -A3 "different programs of 3" err | grep -o "[0-9]\. score .*" >ranks
    check "each image of a search has random streams of its own" \
        eval '[ $(grep -c "^1[.]" ranks) = 2 ] && [ "$(awk "/^1[.]/ { n++ } n == 1" ranks)" != "$(awk "/^1[.]/ { n++ } n == 2" ranks)" ]'
    "$damage" set "$root/dev/starter/student.safetensors" overflow.safetensors lm.0.norm1 0 3e38
    for i in search candidates; do
        run "$infer" --model overflow.safetensors --quiet "$image" image1.png --$i 3 --json
        check "--$i: numbers that are not finite fail one image after another" \
            eval '[ $status = 1 -a $(wc -l <out) = 2 ] && [ $(grep -c "values that are not finite, though all its weights are" err) = 2 ]'
    done
    run env PATH=/nowhere "$infer" "${starter[@]}" "$image" --search 3
    check "a search without TeX is refused" eval '[ $status = 1 -a ! -s out ] && grep -q "no TeX engine is installed" err'
    unset XDG_CACHE_HOME
}

# ---- eval ----

images_exist() { # FOLDER: those that its report.md shows
    local image
    for image in $(sed -n 's/^!\[[^]]*\](\([^)]*\)).*/\1/p' "$1/report.md"); do [ -s "$1/$image" ] || return 1; done
}

# eval --report, with TeX, without, and interrupted.
reporting() {
    local student=$root/dev/starter/student.safetensors data=$root/dev/starter/test.bin measure
    measure=("$eval" --model "$student" --data "$data" --samples 6 --batch 2)
    export XDG_CACHE_HOME=$tmp/cache
    run env PATH=/nowhere "${measure[@]}" --report plain
    check "a report without TeX" [ $status = 0 ]
    check "it says what is left out" grep -q "the drawings are left out" err
    check "... in the page, too" grep -q "drawings are left out" plain/index.html
    check "texts are compared" grep -q "^bleu,student,[0-9]" plain/metrics.csv
    check "drawings are not" grep -q "^ssim,student,,," plain/metrics.csv
    refuses 2 "--report compares greedy programs" "${measure[@]}" --report plain --no-greedy
    refuses 2 "options of --report" "${measure[@]}" --resume
    refuses 2 "--texts-are must be" "${measure[@]}" --report plain --texts-are poems
    refuses 1 "cannot" "${measure[@]}" --report /proc/nothing
    refuses 1 "no-such.bin" "${measure[@]}" --report early --training-data no-such.bin
    check "... before the work" [ ! -e early/index.html -a -z "$(ls early/programs-* 2>/dev/null)" ]
    check "without TeX nothing is said to compile or not" eval '! grep -q "does not compile" plain/index.html'
    has_tex reports || return
    succeeds "${measure[@]}" --baseline "$student" --report full --training-data "$root/dev/starter/val.bin"
    check "all programs compile" grep -q "^compile_clean,.*,1,1,1$" full/metrics.csv
    check "self-similarity, and the kernel inception distance" eval 'grep -q "^selfsim_emd,.*,0\.[4-9]" full/metrics.csv &&
        grep -q "^kid,.*,[-0-9.e]*," full/metrics.csv'
    check "two models" [ "$(grep -c '^ssim,' full/metrics.csv)" = 2 ]
    check "six samples do not show whether models differ" grep -q "Fewer than 20 samples" full/index.html
    check "one file given twice has two names" grep -q "student.safetensors (2)" full/index.html
    check "images beside the text" images_exist full
    cp full/metrics.csv before.csv
    local programs
    programs=$(ls full/programs-*)
    head -c 700 "$programs" >cut && cp cut "$programs" # as an interruption leaves it
    cat full/features-* full/similarities >features-before && cp full/scores scores
    head -c 250 scores >full/scores # two whole entries
    succeeds "${measure[@]}" --baseline "$student" --report full --training-data "$root/dev/starter/val.bin" --resume
    check "resumed: the same figures" same before.csv full/metrics.csv
    check "the programs are whole again" [ "$(grep -c '^[0-9]* [0-9]*$' "$programs")" = 6 ]
    cat full/features-* full/similarities >features-after
    check "features and similarities are taken, not computed again" \
        eval '[ -s features-before ] && same features-before features-after && grep -q "^encoding 6/6 .* 12 pairs kept" err'
    check "the scores are whole again" \
        eval '[ "$(wc -c <scores)" -gt 250 -a "$(wc -c <scores)" = "$(wc -c <full/scores)" ] &&
        grep -q "^comparing drawings 12/12 .* 2 pairs kept" err'
    measure=("$eval" --model "$student" --data "$data" --samples 2 --texts-are formulas --report formulas)
    succeeds "${measure[@]}"
    cp formulas/symbols symbols
    succeeds "${measure[@]}" --resume
    check "symbols are matched once" \
        eval '[ -s symbols ] && same symbols formulas/symbols && grep -q "^matching symbols 2/2 .* 2 kept" err'
}

evaluating() {
    local i
    succeeds "$eval" --model teacher.safetensors --model student/student.safetensors --teacher teacher.safetensors \
        --data val.bin --batch 3 --json eval.json
    check "the table has a head and two rows" [ "$(wc -l <out)" = 3 ]
    check "the table names its columns" grep -q 'parameters .*CE .*accuracy .*soft .*agreement .*exact' out
    check "a model agrees with itself" grep -q '^teacher.safetensors .* 0.0000 *100.00%' out
    "$damage" json eval.json model ce accuracy soft agreement exact samples tokens tokens_per_second >json.txt
    check "--json: an object for each model with every figure" [ "$(grep -cv -e '- ' json.txt)" = 2 ]
    check "--json: the table's figures" near "$(awk 'NR == 2 { print $3 }' out)" "$(number_of eval.json ce 1)" 0.00006
    "$eval" --model "$root/dev/starter/teacher.safetensors" --data "$root/dev/starter/test.bin" --json stopped.json \
        >out 2>err </dev/null &
    wait_for $! test -e stopped.json.partial
    kill -TERM $!
    wait $!
    status=$?
    check "SIGTERM ends it, and leaves no partial file" [ $status = 143 -a ! -e stopped.json -a ! -e stopped.json.partial ]
    succeeds "$eval" --model teacher.safetensors --data val.bin --batch 3 --no-greedy --logits logits.safetensors
    local ce T
    ce=$(awk 'NR == 2 { print $3 }' out) # from logits rounded to the storage type; those in the file are not
    check "--logits: the table's CE" near "$ce" "$("$damage" ce logits.safetensors)" 0.002
    T=$("$damage" tensor logits.safetensors ids | cut -d ' ' -f 3)
    check "--logits: ids [8, T]" eval '[[ $("$damage" tensor logits.safetensors ids) == "I32 8 $T ["* ]]'
    check "--logits: logits [8, T, V]" eval '[[ $("$damage" tensor logits.safetensors logits) == "F32 8 $T "* ]]'
    succeeds "$eval" --model teacher.safetensors --data val.bin --batch 1 --texts texts
    for i in 0 1 2; do # eval stops at the longest text of the data
        run "$infer" --quiet --model teacher.safetensors image$i.png --max-tokens "$T"
        check "--texts and infer write the same ($i)" [ "$(cat out)" = "$(cat texts/0000$i.tex)" ]
        check "--texts writes the data's text ($i)" grep -q documentclass texts/0000$i.ref.tex
    done
    "$damage" blank val.bin one-blank.bin 2
    succeeds "$eval" --model teacher.safetensors --data one-blank.bin --no-greedy
    check "blank images of a dataset are counted" \
        [ "$(grep -c 'warning: 1 of the 8 images are blank .* the first is that of sample 2$' err)" = 1 ]
    succeeds "$eval" --model teacher.safetensors --data val.bin -n 3 --json eval.json
    check "-n 3 measures three samples" [ "$(number_of eval.json samples 1)" = 3 ]
    succeeds "$eval" --model teacher.safetensors --data 'v*l.bin' --soft-loss jsd --batch 64
    succeeds "${alone[@]}" --student "$shape,lm.max_positions=60" --steps 2 --out short
    succeeds "$eval" --model short/student.safetensors --model teacher.safetensors --teacher teacher.safetensors \
        --data val.bin --no-greedy
    check "two models with different room for text" [ "$(wc -l <out)" = 3 ]
    succeeds "$eval" --model short/student.safetensors --data val.bin --texts few
    check "--texts: a short model leaves samples out" [ "$(ls few | wc -l)" -lt "$(ls texts | wc -l)" ]
    check "... and the others have their numbers in the data" eval \
        '[ -z "$(for i in few/*.ref.tex; do same "$i" "texts/${i#few/}" || echo "$i"; done)" ]'
    local kept=(few/*.ref.tex)
    i=${kept[-1]#few/} i=$((10#${i%.ref.tex}))
    "$damage" blank val.bin last-blank.bin $i
    succeeds "$eval" --model short/student.safetensors --data last-blank.bin --no-greedy
    check "a blank image is named by its number in the data, though samples before it are left out" \
        eval '[ ${#kept[@]} -le $i ] && grep -q "the first is that of sample $i$" err'
    "$damage" say teacher.safetensors begun.safetensors tokenizer.begin 300
    succeeds "$eval" --model begun.safetensors --data val.bin --batch 2 -n 3 --texts begun
    for i in 0 1 2; do
        run "$infer" --quiet --model begun.safetensors image$i.png --max-tokens "$T"
        check "with a begin token, --texts and infer write the same ($i)" [ "$(cat out)" = "$(cat begun/0000$i.tex)" ]
    done
    refuses 2 "--texts" "$eval" --model teacher.safetensors --model teacher.safetensors --data val.bin --texts none
    refuses 2 "--texts" "$eval" --model teacher.safetensors --data val.bin --texts none --no-greedy
    check "refused options leave no folder" [ ! -e none ]
    refuses 2 "--logits takes exactly one" "$eval" --model a --model b --data val.bin --logits x
    refuses 1 "nowhere/x.json" "$eval" --model teacher.safetensors --data val.bin --no-greedy --json nowhere/x.json
    refuses 1 "val.bin" "$eval" --model teacher.safetensors --data val.bin --texts val.bin
    evaluating_logits
    if [ -w /dev/full ]; then
        refuses 1 "/dev/full" "$eval" --model teacher.safetensors --data val.bin --logits /dev/full
        last=("$eval" --model teacher.safetensors --data val.bin '>/dev/full')
        "$eval" --model teacher.safetensors --data val.bin --no-greedy >/dev/full 2>err
        status=$?
        check "a table that cannot be written is an error" [ $status = 1 ]
    fi
    check "no partial files" no_partial
}

# The metrics of the logits; test/compare_logits.py compares their values.
evaluating_logits() {
    local student=student/student.safetensors model=(--no-greedy --data val.bin --model) block
    model+=($student --teacher teacher.safetensors)
    succeeds "$eval" "${model[@]}" --baseline short/student.safetensors --metrics metrics.json --json eval.json
    check "--metrics prints a second table" [ "$(wc -l <out)" = 8 ]
    check "the second table has the teacher's row" grep -q '^teacher.safetensors  *[0-9.]* *[0-9.]*  *[0-9.]* ' out
    for block in baseline_student distilled_model teacher_self tikz_c; do
        check "--metrics: $block" grep -q "\"$block\":{" metrics.json
    done
    check "--json: the baseline first" [ "$(number_of eval.json model 1)" = short/student.safetensors ]
    check "all models are measured on the same samples" [ "$(number_of eval.json samples 1)" = 5 -a \
        "$(number_of eval.json samples 2)" = 5 ]
    check "--json: the logits' CE is the table's" near "$(number_of eval.json ce 2)" \
        "$(sed 's/.*"distilled_model":{"CE":\([^,]*\).*/\1/' metrics.json)" 0.002
    succeeds "$eval" "${model[@]}" --metrics one.json --batch 8 --threads 1
    check "without a baseline its block is null" grep -q '^{"baseline_student":null,' one.json
    succeeds "$eval" "${model[@]}" --metrics two.json --batch 8 --threads 2
    check "the same metrics for any number of threads" same one.json two.json
    succeeds "$eval" "${model[@]}" --metrics one.json -n 1
    check "one sample" grep -q '"samples":1,' one.json
    refuses 2 "--metrics takes exactly one --model" "$eval" --model a --model b --teacher c --metrics none.json
    refuses 2 "--metrics compares with a teacher" "$eval" --model a --metrics none.json
    refuses 2 "--logits takes exactly one" "$eval" --model a --baseline b --logits none.json
    refuses 1 "nowhere/m.json" "$eval" "${model[@]}" --metrics nowhere/m.json
    "$damage" word teacher.safetensors word.safetensors
    refuses 1 "do not share a tokenizer" "$eval" --model $student --teacher word.safetensors --data val.bin \
        --metrics none.json
    check "nothing is written when refused" [ ! -e none.json ]
}

# ---- weights of 8 and 4 bits ----

# The figures of eval without how fast they came.
figures() { "$damage" json "$1" ce accuracy soft agreement exact samples tokens; } # FILE

# What is measured and written with MODEL and --weights FORMAT is, to the byte, what it is with the file of `quantize`.
same_quantised() { # MODEL FORMAT
    local file=$2.safetensors options large=dev/starter/teacher.safetensors
    succeeds "$quantize" --weights "$2" "$1" "$file"
    check "quantize says what it wrote" grep -q "^$file: .* M parameters, .* MB, .* bits each$" err
    for options in "" "--temperature 1.2 --top-p 0.95 --seed 3"; do
        succeeds "$infer" --model "$1" --weights "$2" -q image0.png image1.png image2.png $options
        mv out whole.tex
        succeeds "$infer" --model "$file" -q image0.png image1.png image2.png $options
        check "$2: infer $options writes the same with the file" same out whole.tex
    done
    succeeds "$eval" --model "$1" --weights "$2" --teacher $large --data val.bin --json whole.json
    succeeds "$eval" --model "$file" --teacher $large --data val.bin --json file.json
    check "$2: eval measures the same with the file" eval '[ "$(figures whole.json)" = "$(figures file.json)" ]'
    succeeds "$eval" --model "$1" --weights "$2" --data val.bin --no-greedy --logits whole.logits
    succeeds "$eval" --model "$file" --data val.bin --no-greedy --logits file.logits
    check "$2: the logits are the same with the file" same whole.logits file.logits
    succeeds "$infer" --model "$file" --weights "$2" -q image0.png
    succeeds "$quantize" -q --weights "$2" --threads 1 "$1" again.safetensors
    check "$2: --quiet is quiet" [ ! -s err ]
    check "$2: one thread writes the same file" same again.safetensors "$file"
}

# How much worse the shipped models become on the test figures. Rounding the weights to 8 bits must cost less than 0.1 %, to 4
# bits less than 2 %. Storing activations in bf16 moves the cross entropy as well, by 0.2 % either way: only FP32 is exact.
quantised_quality() {
    local name format bound before after data=dev/starter/test.bin
    succeeds "${alone[@]}" --student "$shape" --steps 1 --out stored
    for name in teacher student; do
        local model=(--no-greedy --model dev/starter/$name.safetensors --data $data --json)
        succeeds "$eval" "${model[@]}" before.json
        before=$(number_of before.json ce 1)
        for format in q8 q4; do
            bound=0.02
            [ $format = q8 ] && bound=0.003
            [[ $format = q8 && $("$damage" tensor stored/student.safetensors lm.norm) = F32* ]] && bound=0.001
            succeeds "$eval" "${model[@]}" after.json --weights $format
            after=$(number_of after.json ce 1)
            check "$name: the cross entropy with $format ($after) is at most $bound worse than $before" \
                at_least "$(awk -v ce="$before" -v bound=$bound 'BEGIN { printf "%.9g", ce * (1 + bound) }')" "$after"
            check "$name: $format has an effect" [ "$before" != "$after" ]
        done
    done
}

# Rows that are no multiple of a group of 32 weights.
quantised_odd() {
    local odd=tiny,vision.image_size=48,vision.layers=1,vision.width=40,vision.heads=2,vision.mlp=70 format before
    odd=$odd,lm.layers=2,lm.width=50,lm.heads=3,lm.kv_heads=1,lm.head_dim=18,lm.ffn=90
    succeeds "${alone[@]}" --student "$odd" --steps 60 --lr 0.01 --out odd
    succeeds "$eval" --no-greedy --model odd/student.safetensors --data val.bin --json odd.json
    before=$(number_of odd.json ce 1)
    check "the model with odd rows has learned ($before)" below "$before" 3.5
    for format in q8 q4; do
        same_quantised odd/student.safetensors $format
        check "odd rows: the cross entropy with $format ($(number_of whole.json ce 1)) is that without, $before" \
            near "$(number_of whole.json ce 1)" "$before" $([ $format = q8 ] && echo 0.005 || echo 0.05)
    done
}

quantised_usage() { # STUDENT
    local p
    for p in "$infer image0.png" "$eval --data val.bin"; do
        refuses 2 "--weights must be q8 or q4, not 'q5'" $p --model "$1" --weights q5
        refuses 1 "q8.safetensors is quantised in another way than is asked for" $p --model q8.safetensors --weights q4
        refuses 1 "q4.safetensors is quantised in another way than is asked for" $p --model q4.safetensors --weights q8
    done
    refuses 2 "--weights must be q8 or q4, not 'q5'" "$quantize" --weights q5 "$1" bad.safetensors
    refuses 2 "two files are needed: the model, and the one to write; got 0" "$quantize"
    refuses 2 "got 1" "$quantize" "$1"
    refuses 2 "got 3" "$quantize" "$1" bad.safetensors more.safetensors
    refuses 2 "--nonsense" "$quantize" --nonsense "$1" bad.safetensors
    cp "$1" own.safetensors && ln -s own.safetensors link.safetensors
    for p in own.safetensors ./own.safetensors link.safetensors; do
        refuses 2 "the model would be written over itself" "$quantize" own.safetensors $p
    done
    check "and it is as it was" same own.safetensors "$1"
    for p in q8 q4; do
        refuses 1 "q8.safetensors is quantised already" "$quantize" --weights $p q8.safetensors bad.safetensors
    done
    for p in missing.safetensors empty text.txt folder image0.png; do
        refuses 1 $p "$quantize" $p bad.safetensors
    done
    refuses 1 "nowhere/x.safetensors" "$quantize" "$1" nowhere/x.safetensors
    refuses 1 "folder" "$quantize" "$1" folder
    if [ -w /dev/full ]; then refuses 1 "cannot write /dev/full: No space left" "$quantize" "$1" /dev/full; fi
    last=("$quantize" "$1" bad.safetensors "(ulimit -f 100)")
    (trap '' XFSZ && ulimit -f 100 && exec "${last[@]:0:3}") >out 2>err
    status=$?
    check "a full disk: status 1 and one sentence" eval '[ $status = 1 ] && one_sentence "cannot write bad.safetensors"'
    mkdir -p small
    if [ "$(id -u)" != 0 ] && chmod a-w small || mount -t tmpfs -o ro tmpfs small 2>/dev/null; then
        refuses 1 "cannot write small/q8.safetensors: " "$quantize" "$1" small/q8.safetensors
        [ "$(id -u)" != 0 ] && chmod u+w small || umount small
    fi
    check "nothing is left of what was refused" eval '[ ! -e bad.safetensors ] && no_partial'
}

quantised_training() { # STUDENT
    local why="which cannot be trained; name the model that it was made of" format
    for format in "q8 8" "q4 4"; do
        set -- "$1" $format
        refuses 1 "$2.safetensors has weights of $3 bits, $why" "${alone[@]}" --student $2.safetensors --out bad
        refuses 1 "$2.safetensors has weights of $3 bits, $why" "${taught[@]}" --teacher $2.safetensors --out bad
    done
    check "nothing is left of a training that was refused" eval \
        '[ -z "$(find bad -type f ! -name .lock)" ]'
    rm -rf bad
    succeeds "${alone[@]}" --student "$1" --steps 1 --out resumed
    "$quantize" -q resumed/student.safetensors now-q8.safetensors && mv now-q8.safetensors resumed/student.safetensors
    refuses 1 "resumed/student.safetensors has weights of 8 bits, $why" "$train" --resume --out resumed --steps 2
    succeeds "${alone[@]}" --student "$shape" --tokenizer q8.safetensors --steps 1 --out tokens
    for format in q8 q4; do
        succeeds "$quantize" -q --weights $format tokens/student.safetensors init.safetensors
        refuses 1 "--init: init.safetensors has quantised weights; name the model" \
            "${alone[@]}" --student "$shape" --init init.safetensors --out bad
    done
}

# Damaged models: those that are to be quantised, and those that are.
quantised_damage() { # STUDENT
    local t f damaged="is damaged: tensor"
    for t in lm.embed lm.norm lm.0.qkv.weight vision.patch.weight; do
        "$damage" nan "$1" original.safetensors $t
        for f in q8 q4; do
            refuses 1 "original.safetensors $damaged $t holds a value that is not finite" \
                "$quantize" --weights $f original.safetensors bad.safetensors
            refuses 1 "original.safetensors $damaged $t holds" \
                "$infer" --model original.safetensors --weights $f image0.png -o bad.tex
        done
        [ $t = lm.norm ] || "$damage" nan q4.safetensors scales.safetensors $t.scales
        [ $t = lm.norm ] || refuses 1 "scales.safetensors $damaged $t.scales holds" \
            "$eval" --model scales.safetensors --data val.bin --json bad.json
    done
    bad_quantised() { # PART
        refuses 1 "$1" "$infer" --model damaged.safetensors image0.png -o bad.tex
        refuses 1 "$1" "$eval" --model damaged.safetensors --data val.bin --json bad.json
        refuses 1 "$1" "$quantize" damaged.safetensors bad.safetensors
    }
    # the header's text changes, its length does not
    edited() { LC_ALL=C sed "s/$2/$3/" $1 >damaged.safetensors && differ $1 damaged.safetensors; } # FILE THIS THAT
    t=lm.1.down.weight
    check "the fixture" edited q8.safetensors "\"$t.scales\"" "\"$t.stales\""
    bad_quantised "tensor $t.scales is missing, without which $t says nothing"
    check "the fixture" edited q8.safetensors "\"$t.scales\":{\"dtype\":\"BF16\"" "\"$t.scales\":{\"dtype\": \"F16\""
    bad_quantised "tensor $t.scales is of type F16; scales must be BF16"
    check "the fixture" edited q8.safetensors '"lm.norm":{"dtype":"BF16","shape":\[192\]' \
        '"lm.norm":{"dtype":  "U8","shape":[384]'
    bad_quantised "tensor lm.norm has shape [384, 1]; the configuration asks for [192, 1]"
    check "the fixture" edited q8.safetensors '"lm.norm":{"dtype":"BF16","shape":\[192\]' \
        '"lm.norm":{"dtype":"I16", "shape":[192]'
    bad_quantised "tensor lm.norm has dtype I16; F32, BF16, F16, I8, U8, I32 and I64 are supported"
    check "the fixture" edited q8.safetensors '"lm.embed":{"dtype":"I8","shape":\[512,192\]' \
        '"lm.embed":{"dtype":"U8","shape":[512,192]'
    bad_quantised "tensor lm.embed has shape [512, 192]; the configuration asks for [512, 96]"
    check "the fixture" edited q8.safetensors '"lm.embed":{"dtype":"I8","shape":\[512,192\]' \
        '"lm.embed":{"dtype":"I8","shape":[192,512]'
    bad_quantised "tensor lm.embed has shape [192, 512]; the configuration asks for [512, 192]"
    for f in q8:16:8 q4:32:16; do # groups of 64: half as many scales
        "$damage" halve ${f%%:*}.safetensors damaged.safetensors $t.scales
        f=${f#*:}
        bad_quantised "tensor $t.scales has ${f#*:} numbers a row; groups of 32 weights need ${f%:*}"
    done
    "$damage" halve q4.safetensors damaged.safetensors $t
    bad_quantised "tensor $t has shape [192, 128]; the configuration asks for [192, 256]"
    check "nothing is written of a damaged model" eval \
        '[ ! -e bad.safetensors ] && [ ! -e bad.json ] && [ -z "$(find bad.tex -type f 2>/dev/null)" ] && no_partial'
}

quantised() {
    local student=dev/starter/student.safetensors size format
    size=$(stat -c %s $student)
    quantised_odd
    for format in "q8 0.50 0.56" "q4 0.33 0.36"; do
        set -- $format
        same_quantised $student $1
        check "a file of $1 takes $2 to $3 of the original" awk -v n="$(stat -c %s $1.safetensors)" -v all="$size" \
            "BEGIN { exit !(n >= $2 * all && n <= $3 * all) }"
    done
    quantised_usage $student
    quantised_training $student
    quantised_damage $student
}

# ---- wrong usage: status 2 ----

usage() {
    local p
    for p in "$train" "$infer" "$eval"; do
        refuses 2 "--nonsense" "$p" --nonsense
        refuses 2 "--threads" "$p" --threads many
        refuses 2 "--threads" "$p" --threads 1.5
        refuses 2 "--threads" "$p" --threads -1
        refuses 2 "--threads" "$p" --threads
        [ "$p" != "$infer" ] && refuses 2 "--device" "$p" --device gpu
        refuses 2 "nowhere.txt" "$p" --config nowhere.txt
    done
    refuses 2 "no image" "$infer"
    refuses 2 "--device" "$infer" --device gpu image0.png
    refuses 2 "stray" "$train" stray
    refuses 2 "stray" "$eval" stray
    refuses 2 "did you mean --batch" "$train" --bacth 3
    local options
    for options in "--student medium" "--student tiny,lm.layer=2" "--student tiny,lm.layers=0" \
        "--student tiny,vision.patch=7" "--student tiny,lm.layers" "--train all" "--lr-schedule cosin" \
        "--soft-loss mse" "--kd-schedule fast" "--lr fast" "--lr 1e9" "--batch 0" "--steps -3" "--alpha 2" \
        "--temperature 0" "--seed 99999999999999999999" "--jsd-beta nan" "--lr inf"; do
        refuses 2 "${options%% *}" "${alone[@]}" $options --out wrong
    done
    refuses 2 "--batch times --accum" "${alone[@]}" --batch 65535 --accum 65536 --out wrong
    refuses 2 "weight 0" "${alone[@]}" --w-ce 0 --out wrong
    refuses 2 "--init teacher needs" "${alone[@]}" --init teacher --out wrong
    refuses 2 "--overwrite" "${alone[@]}" --resume --overwrite --out wrong
    TIKZ_CPU=none refuses 2 "TIKZ_CPU is 'none', which is no set of processor instructions; it can be " \
        "$infer" --device cpu image0.png
    refuses 2 "--soft-loss" "$eval" --model teacher.safetensors --data val.bin --soft-loss mse
    printf 'steps = 3\nbatch = some\n' >bad.txt
    refuses 2 "bad.txt, line 2" "$train" --config bad.txt
    printf 'stepz = 3\n' >bad.txt
    refuses 2 "bad.txt, line 1" "$train" --config bad.txt
    refuses 2 "teacher.safetensors, line 1" "$train" --config teacher.safetensors
    check "wrong usage leaves no folder" [ ! -e wrong ]
}

# ---- bad files ----

# Every program that reads a model, with one that cannot be used.
bad_model() { # FILE PART
    refuses 1 "$2" "$infer" --model "$1" image0.png -o bad.tex
    refuses 1 "$2" "$eval" --model "$1" --data val.bin
}
bad_model_everywhere() { # FILE PART
    bad_model "$1" "$2"
    refuses 1 "$2" "$eval" --model teacher.safetensors --teacher "$1" --data val.bin
    refuses 1 "$2" "${alone[@]}" --student "$1" --out bad
    refuses 1 "$2" "${alone[@]}" --student "$shape" --tokenizer "$1" --out bad
    refuses 1 "$2" "${alone[@]}" --student "$shape" --teacher "$1" --out bad
    refuses 1 "$2" "${alone[@]}" --student "$shape" --init "$1" --out bad
}
bad_data() { # FILE PART
    refuses 1 "$2" "$eval" --model teacher.safetensors --data "$1" --json bad.json
}
bad_data_everywhere() { # FILE PART
    bad_data "$1" "$2"
    refuses 1 "$2" "${alone[@]}" --student "$shape" --data "$1" --steps 2 --out bad
    refuses 1 "$2" "${alone[@]}" --student "$shape" --val-data "$1" --steps 2 --out bad
    rm -rf bad # a damaged record is only found in the first epoch
}

bad_files() {
    local f n size
    for f in missing.safetensors empty text.txt folder image0.png val.bin; do bad_model_everywhere $f $f; done
    for f in missing.bin empty text.txt folder image0.png teacher.safetensors 'no*.bin'; do
        bad_data_everywhere "$f" "$f"
    done
    for f in missing.png empty text.txt folder teacher.safetensors val.bin /dev/null; do
        refuses 1 $f "$infer" --model teacher.safetensors $f -o bad.tex
    done
    size=$(stat -c %s teacher.safetensors)
    for n in 1 7 8 9 200 3000 $((size / 2)) $((size - 1)); do
        head -c $n teacher.safetensors >cut.safetensors
        bad_model cut.safetensors cut.safetensors
    done
    bad_model_everywhere cut.safetensors cut.safetensors
    for n in 63 40 24 12; do # the header's length grows
        "$damage" flip teacher.safetensors cut.safetensors $n
        bad_model cut.safetensors cut.safetensors
    done
    size=$(stat -c %s val.bin)
    for n in 1 63 64 100 $((size / 2)) $((size - 1)); do
        head -c $n val.bin >cut.bin
        bad_data cut.bin cut.bin
    done
    bad_data_everywhere cut.bin cut.bin
    size=$(stat -c %s image0.png)
    for n in 4 8 20 33 60 $((size / 2)) $((size - 1)); do
        head -c $n image0.png >cut.png
        refuses 1 cut.png "$infer" --model teacher.safetensors cut.png -o bad.tex
    done
    for n in 2 3 100 300 $(($(stat -c %s cmyk.jpg) - 2)); do
        head -c $n cmyk.jpg >cut.jpg
        refuses 1 cut.jpg "$infer" --model teacher.safetensors cut.jpg -o bad.tex
    done
    if [ "$(id -u)" != 0 ]; then
        cp teacher.safetensors closed && chmod 0 closed
        bad_model_everywhere closed closed
    fi
    "$damage" token val.bin token.bin 1 100000
    bad_data_everywhere token.bin "token.bin: record 1 has token 100000"
    "$damage" token val.bin token.bin 7 2147483648
    bad_data_everywhere token.bin "token.bin: record 7"
    refuses 1 "token.bin: record 7" "$eval" --model teacher.safetensors --data token.bin --batch 2 --logits bad.logits
    "$damage" word teacher.safetensors word.safetensors
    refuses 1 "do not share a tokenizer" "${taught[@]}" --tokenizer word.safetensors --out bad
    refuses 1 "do not share a tokenizer" "$eval" --model teacher.safetensors --teacher word.safetensors --data val.bin
    refuses 1 "which is to be measured on it" "${alone[@]}" --student "$shape" --init word.safetensors --init-width importance --out bad
    refuses 1 "another tokenizer" "${alone[@]}" --student "$shape" --tokenizer word.safetensors --out bad
    refuses 1 "another tokenizer" "$eval" --model word.safetensors --data val.bin
    refuses 1 "lm.vocab 10 is too small" "${alone[@]}" --student "$shape,lm.vocab=10" --out bad
    refuses 1 "not enough for one batch of 100" "${alone[@]}" --student "$shape" --batch 100 --out bad
    refuses 1 "not enough for one batch" "${alone[@]}" --student "$shape" --max-tokens 2 --out bad
    refuses 1 "--w-embed needs as many image tokens" "${taught[@]}" --student "$few" --w-embed 1 --out bad
    for f in bad/options.txt bad/log.jsonl bad/student.safetensors bad.tex bad.json; do
        check "refused runs leave no $f" [ ! -e $f ]
    done
    check "no partial files" no_partial
}

# One bit anywhere: in the header of a model, in its data, in a dataset, in images.
flipped_bits() {
    local i bits
    bits=$(($("$damage" tensor teacher.safetensors lm.embed | sed 's/.*\[\(.*\)\].*/\1/') * 8))
    for ((i = 3; i < bits; i += bits / 60)); do
        "$damage" flip teacher.safetensors flip.safetensors $i
        survives "$infer" --model flip.safetensors --max-tokens 4 image0.png
    done
    for ((i = -5; i > -20000; i -= 1999)); do # the tokenizer lies at the end
        "$damage" flip teacher.safetensors flip.safetensors $i
        survives "$infer" --model flip.safetensors --max-tokens 4 image0.png
    done
    local damaged="nan.safetensors is damaged: tensor lm.embed holds a value that is not finite"
    refuses 1 "$damaged" "$infer" --model nan.safetensors --max-tokens 4 image0.png -o bad.tex
    refuses 1 "$damaged" "$infer" --model nan.safetensors --temperature 1 --top-p 0.9 image0.png image1.png -o bad.tex
    refuses 1 "$damaged" "$eval" --model nan.safetensors --data val.bin --json bad.json
    refuses 1 "$damaged; the first logits that are not finite are those of sample 0 for its token " \
        "$eval" --model teacher.safetensors --teacher nan.safetensors --data val.bin --json bad.json
    check "nothing is written of a damaged model" eval '[ ! -e bad.json ] && [ -z "$(find bad.tex -type f)" ]'
    rm -r bad.tex
    "$damage" part val.bin two.bin 0 2
    bits=$(($(stat -c %s two.bin) * 8))
    for ((i = 0; i < 512; i += 17)); do
        "$damage" flip two.bin flip.bin $i
        survives "$eval" --model teacher.safetensors --no-greedy --data flip.bin
    done
    for ((i = 520; i < bits - 600; i += bits / 30)); do
        "$damage" flip two.bin flip.bin $i
        refuses 1 flip.bin "$eval" --model teacher.safetensors --no-greedy --data flip.bin
    done
    for ((i = 1; i < 1000; i += 97)); do # the index
        "$damage" flip two.bin flip.bin -$i
        survives "$eval" --model teacher.safetensors --no-greedy --data flip.bin
    done
    for f in image0.png cmyk.jpg; do
        for ((i = 0; i < 8 * $(stat -c %s $f); i += 8 * $(stat -c %s $f) / 40 + 1)); do
            "$damage" flip $f flip.png $i
            survives "$infer" --model teacher.safetensors --max-tokens 2 flip.png
        done
    done
}

# ---- folders and checkpoints ----

bad_resume() {
    refuses 1 "there is no checkpoint nothing/state.safetensors" "$train" --resume --out nothing
    check "a failed --resume makes no folder" [ ! -e nothing ]
    succeeds "${alone[@]}" --student "$shape" --steps 4 --out first
    cp -r first kept-first
    refuses 1 "--student" "$train" --resume --out first --student "$wide" --steps 6
    refuses 1 "--student" "$train" --resume --out first --student tiny --steps 6
    cp -r first smaller
    succeeds "$train" --resume --out smaller --train lm --steps 6
    cp -r frozen-a larger
    refuses 1 "larger/state.safetensors" "$train" --resume --out larger --train vision,connector,lm --steps 64
    succeeds "$train" --resume --out larger --steps 64
    local f n
    for f in student state; do
        for n in 0 5 1000 $(($(stat -c %s first/$f.safetensors) - 1)); do
            rm -rf second && cp -r first second
            head -c $n first/$f.safetensors >second/$f.safetensors
            refuses 1 "second/$f.safetensors" "$train" --resume --out second --steps 6
        done
        for f2 in image0.png train.bin teacher.safetensors; do
            rm -rf second && cp -r first second
            cp $f2 second/$f.safetensors
            refuses 1 "second/" "$train" --resume --out second --steps 6
        done
    done
    rm -rf second && cp -r first second && rm second/options.txt
    refuses 1 "second/options.txt" "$train" --resume --out second --steps 6
    check "a failed --resume changes nothing" eval 'same first/student.safetensors kept-first/student.safetensors &&
        same first/state.safetensors kept-first/state.safetensors && same first/options.txt kept-first/options.txt'
    succeeds "$train" --resume --out first --steps 6
    interrupted INT 3 renewed "${alone[@]}" --student "$shape" --steps 1000 --eval-every 1
    interrupted KILL 1 renewed "${alone[@]}" --student "$shape" --steps 100000 --eval-every 90000
    refuses 1 "there is no checkpoint" "$train" --resume --out renewed
}

folders() {
    refuses 1 "text.txt" "${alone[@]}" --student "$shape" --steps 2 --out text.txt
    refuses 1 "text.txt" "${alone[@]}" --student "$shape" --steps 2 --out text.txt/below
    succeeds "${alone[@]}" --student "$shape" --steps 2 --out deep/er/out
    succeeds "${alone[@]}" --student "$shape" --steps 2 --out "with space"
    succeeds "$train" --resume --out "with space" --steps 3
    "${alone[@]}" --student "$shape" --steps 100000 --eval-every 3 --out shared >/dev/null 2>&1 &
    local process=$!
    wait_for $process has_lines shared/log.jsonl 8
    refuses 1 "another run (process $process) is writing into shared" "${alone[@]}" --student "$shape" --steps 2 \
        --out shared --overwrite
    refuses 1 "another run" "$train" --resume --out shared
    kill -TERM $process
    wait $process
    check "the first run is not disturbed" usable shared
    # killed at any moment, with a save in every step, the files are whole
    local i
    for i in 1 4 $([ "$quick" ] || echo 2 3 5 6); do
        interrupted KILL $((3 * i)) killed "${alone[@]}" --student "$shape" --steps 100000 --eval-every 1
        check "killed while saving: the checkpoint is usable" usable killed
    done
}

full_disk() {
    succeeds "${alone[@]}" --student "$shape" --steps 4 --out full
    cp -r full full-before
    # a limit on the size of files: the student does not fit, or the student fits and the state does not
    local kilobytes f
    for kilobytes in 100 400; do
        last=("$train" --resume --out full --steps 6 "(ulimit -f $kilobytes)")
        (trap '' XFSZ && ulimit -f $kilobytes && exec "$train" --resume --out full --steps 6) >out 2>err
        status=$?
        check "a full disk: status 1" [ $status = 1 ]
        check "a full disk: one sentence" one_sentence "cannot write full/"
        check "a full disk: the state is unchanged" same full/state.safetensors full-before/state.safetensors
        check "a full disk: no partial files" no_partial full
        check "a full disk: the checkpoint is usable" usable full
    done
    succeeds "$train" --resume --out full --steps 6
    succeeds "$train" --resume --out full-before --steps 6
    check "going on after a full disk, the same bits" same full/state.safetensors full-before/state.safetensors

    mkdir -p small
    [ "$(id -u)" = 0 ] && mount -t tmpfs -o size=2m tmpfs small 2>/dev/null || return
    succeeds "${alone[@]}" --student "$shape" --steps 4 --out small/out
    cp -r small/out small-before
    head -c 4000000 /dev/zero >small/filler 2>/dev/null
    truncate -s -65536 small/filler # room for the options and the log, not for the student
    run "$train" --resume --out small/out --steps 6
    check "a full file system: status 1" [ $status = 1 ]
    check "a full file system: one sentence" one_sentence "cannot write small/out/student.safetensors: No space left"
    for f in student state; do
        check "a full file system: $f is unchanged" same small/out/$f.safetensors small-before/$f.safetensors
    done
    head -c 4000000 /dev/zero >>small/filler 2>/dev/null
    run "$infer" --model teacher.safetensors image0.png -o small/x.tex
    check "a full file system: no image's text" [ $status = 1 -a ! -s small/x.tex ]
    run "$eval" --model teacher.safetensors --data val.bin --no-greedy --logits small/x.safetensors
    check "a full file system: no logits" [ $status = 1 -a ! -e small/x.safetensors ]
    check "no partial files" no_partial small
    rm small/filler
    succeeds "$train" --resume --out small/out --steps 6
    umount small
}

# shellcheck disable=SC2046
run_groups training adapters resuming rectangular $([ "$quick" ] || echo accumulating objective) inferring prefixing options telling wild drawing choosing evaluating reporting quantised \
    quantised_quality usage bad_files flipped_bits bad_resume folders full_disk
end_test
