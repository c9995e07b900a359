#!/bin/bash
# What can happen to a training run and its files: numbers that are not finite, signals, closed descriptors, kills between
# two changes of a folder, files that are cut, replaced or not files at all, and --resume with other settings.
#
#   test/test_runs.sh build/BF16 [quick]      the folder with the programs
#
# quick: one case of what differs little, and no kills. GROUPS_TO_RUN names groups, VERBOSE=1 times them. Needs what `make` needs.
. "$(dirname "$0")/check.sh"
programs=$(cd "${1:-build/BF16}" && pwd) || exit 1
quick=${2:-}
begin_test runs
cd "$tmp" || exit 1
. "$root/test/training.sh"
export OMP_NUM_THREADS=${OMP_NUM_THREADS:-2}
crash=$tmp/crash.so
${CC:-cc} -std=gnu11 -O1 -shared -fPIC "$root/test/crash.c" -o "$crash" -ldl || exit 1
alone+=(--student "$shape" --eval-every 1000)

succeeds "${alone[@]}" --steps 4 --lr 0.01 --out teacher
cp teacher/student.safetensors teacher.safetensors

# A finished run of 4 steps in the folder; OPTIONS as for train_distill.
finished() { # OUT OPTIONS...
    local out=$1
    shift
    rm -rf "$out"
    succeeds "${alone[@]}" --steps 4 --out "$out" "$@"
}

# ends PROCESS: waits for it, a minute at most, and leaves its status in `status`
ends() {
    wait_for "$1" false
    kill -0 "$1" 2>/dev/null && kill -KILL "$1"
    wait "$1"
    status=$?
} 2>/dev/null

same_files() { # A B FILE...: in two folders
    local a=$1 b=$2 f
    shift 2
    for f in "$@"; do same "$a/$f" "$b/$f" || return 1; done
}
same_checkpoint() { same_files "$1" "$2" student.safetensors state.safetensors; }

# ---- numbers that are not finite ----

all_finite() { # OUT
    local f
    for f in "$1"/*.safetensors; do "$damage" finite "$f" || return 1; done
}

# Does what the last sentence advises.
follows_advice() { # OUT
    local best
    if grep -q '; --resume continues from it, with a smaller --lr$' err; then
        succeeds "$train" --resume --out "$1" --lr 1e-3 --steps 8
    elif best=$(grep -o 'start anew with --student [^ ]* in another --out folder, with a smaller --lr$' err); then
        best=${best#*--student }
        rm -rf anew
        succeeds "${alone[@]}" --student "${best%% *}" --lr 1e-3 --steps 4 --out anew
    else
        fail "the sentence says what to do"
    fi
}

diverging() {
    # the checkpoint of step 1 stays, because the evaluation after step 2 gives no number
    local options=(--batch 2 --lr 10 --decay 10 --clip 0 --warmup 0 --val-data val.bin --eval-every 1) token
    rm -rf diverge
    refuses 1 "the validation loss became nan after step 2; the checkpoint in diverge is kept" \
        "${alone[@]}" "${options[@]}" --student tiny --steps 300 --out diverge
    check "an evaluation that is not finite: the files are" all_finite diverge
    follows_advice diverge

    # a weight that no sample uses becomes infinite, while the loss and the first evaluation, the best so far, are numbers
    token=$("$damage" unused dev/starter/train.bin)
    finished unused
    cp teacher.safetensors unused/best.safetensors
    "$damage" set unused/state.safetensors set lm.embed.master $((token * 32)) 3e38 && mv set unused/state.safetensors
    rm -rf unused-before && cp -r unused unused-before
    refuses 1 "the weights of lm.embed are not finite after step 5; the checkpoint in unused is kept" \
        "$train" --resume --out unused --lr 0.01 --lr-schedule constant --decay 10 --clip 1e-9 --steps 6 --eval-every 1 \
        --val-data val.bin
    check "weights that are not finite: the checkpoint stays" same_checkpoint unused unused-before
    check "weights that are not finite: the best student stays" same_files unused unused-before best.safetensors

    # a checkpoint from which every step fails
    finished far --val-data val.bin
    "$damage" set far/state.safetensors set connector.weight.master 0 3e38 && mv set far/state.safetensors
    rm -rf far-before && cp -r far far-before
    refuses 1 "its next step fails with every --lr; start anew with --student far/best.safetensors" \
        "$train" --resume --out far --steps 6
    check "a checkpoint that has come too far stays" same_checkpoint far far-before
    follows_advice far

    # a loss that is not finite, long after the checkpoint
    [ -z "$quick" ] || return 0
    finished long
    rm -rf long-before && cp -r long long-before
    refuses 1 "the loss became" "$train" --resume --out long --lr 10 --decay 10 --clip 0 --lr-schedule constant \
        --warmup 0 --steps 300 --eval-every 1000
    check "the earlier checkpoint is unchanged" same_checkpoint long long-before
    follows_advice long
}

# A file that holds a NaN is named, with the tensor, whatever it is for.
damaged_files() {
    local role tensor=vision.0.fc1.weight
    "$damage" nan teacher.safetensors nan.safetensors $tensor
    for role in teacher student init; do
        rm -rf hopeless
        refuses 1 "nan.safetensors is damaged: its tensor $tensor holds a value that is not finite" \
            "${alone[@]}" --$role nan.safetensors --steps 2 --out hopeless
        check "and leaves no student" [ ! -e hopeless/student.safetensors ]
    done
    finished damaged
    "$damage" set damaged/state.safetensors set connector.weight.m 0 nan && mv set damaged/state.safetensors
    refuses 1 "damaged/state.safetensors is damaged: the moments of connector.weight are not finite" "$train" --resume --out damaged --steps 6
}

# ---- signals ----

# SIGTERM, SIGHUP (a terminal that closes) and SIGUSR1 (what mpirun passes on) save and stop as SIGINT does. What was
# ignored at the start stays ignored. A stderr that nobody reads is no reason to stop.
signals() {
    local signal command=("${alone[@]}" --eval-every 6)
    for signal in HUP $([ "$quick" ] || echo TERM USR1); do
        interrupted "$signal" 8 signalled "${command[@]}" --steps 100000
        check "SIG$signal saves and ends with status 0" [ $status = 0 ]
        check "SIG$signal says so" grep -q '^interrupted: saved step' err
        check "SIG$signal leaves a checkpoint" usable signalled
    done
    for signal in INT $([ "$quick" ] || echo HUP); do
        rm -rf signalled
        last=("${command[@]}" --steps 200 --out signalled)
        env --ignore-signal="$signal" "${last[@]}" >out 2>err &
        wait_for $! has_lines signalled/log.jsonl 4
        kill -"$signal" $! 2>/dev/null
        ends $!
        check "SIG$signal that was ignored (nohup, a background job) is ignored" has_lines signalled/log.jsonl 200
    done
    rm -rf piped
    last=("${command[@]}" --steps 60 --out piped '2>&1 | head -n 1')
    { "${command[@]}" --steps 60 --out piped 2>&1; echo $? >status; } | head -n 1 >out
    status=$(cat status)
    check "a stderr that nobody reads: status 0" [ "$status" = 0 ]
    check "a stderr that nobody reads: all steps" has_lines piped/log.jsonl 60
}

# ---- descriptors 0 to 2 ----

# closed HOW COMMAND...: with stderr closed, or all three
closed() {
    local how=$1
    shift
    last=("$@" "($how closed)")
    case $how in
    stderr) "$@" 2>&- >out </dev/null ;;
    all) "$@" 2>&- >&- <&- ;;
    esac
    status=$?
    : >err
}

descriptors() {
    local how model=(--model teacher.safetensors --max-tokens 20)
    succeeds "$infer" "${model[@]}" --show -o open.tex image0.png
    succeeds "$eval" --model teacher.safetensors --data val.bin --no-greedy --logits open.logits
    rm -rf open && succeeds "${alone[@]}" --steps 4 --val-data val.bin --out open
    ${CC:-cc} -O1 "$root/dev/starter/generate.c" -o generate -lm
    run ./generate --count 3 --out figures-open
    for how in $([ "$quick" ] || echo stderr) all; do
        closed $how "$infer" "${model[@]}" --show -o closed.tex image0.png
        check "infer, $how closed: status 0" [ $status = 0 ]
        check "infer, $how closed: the same program" same closed.tex open.tex
        rm -rf closed
        closed $how "${alone[@]}" --steps 4 --val-data val.bin --out closed
        check "train_distill, $how closed: status 0" [ $status = 0 ]
        check "train_distill, $how closed: the same files" \
            same_files closed open student.safetensors state.safetensors best.safetensors
        check "train_distill, $how closed: the same log" same_log closed open
        rm -rf figures
        closed $how ./generate --count 3 --out figures
        check "generate, $how closed: the same figures" diff -r figures-open figures
    done
    closed stderr "$eval" --model teacher.safetensors --data val.bin --no-greedy --logits closed.logits
    check "eval, stderr closed: the same logits" same closed.logits open.logits
    last=("$infer" "${model[@]}" image0.png '>&-')
    "${last[@]}" >&- 2>err
    status=$?
    check "infer with a closed stdout does not lose the program without a word" [ $status = 1 ]
    check "infer with a closed stdout says so" grep -q 'error: cannot write the program of image0.png to stdout' err
}

# ---- kills between two changes of a folder ----

# crashing COMMAND...: kills it before its first change of a name, its second, and so on, until it ends by itself; calls
# `before` and `after`, which check what is there.
crashing() {
    local at crashes=0
    for ((at = 1; at < 60; at++)); do
        before
        last=("$@" "(killed before change $at)")
        { LD_PRELOAD=$crash CRASH_AT=$at "$@" >out 2>err </dev/null; status=$?; } 2>killed
        [ $status = 137 ] || break
        crashes=$((crashes + 1))
        after
    done
    check "a run that nothing kills succeeds" [ $status = 0 ]
    check "there were changes to kill it at" [ $crashes -ge 6 ]
}

overwriting() {
    finished kept --lr 0.02 --val-data val.bin
    before() { rm -rf again && cp -r kept again; }
    after() { # the old state only with the old options, a best student only beside the state that knows it
        if [ ! -e again/state.safetensors ]; then
            same again/options.txt kept/options.txt ||
                check "the old best student with the old options" differ again/best.safetensors kept/best.safetensors
        elif same again/state.safetensors kept/state.safetensors; then
            check "the old state with the old options" same again/options.txt kept/options.txt
        else
            check "the new state with the new options" grep -q '^lr = 0.03$' again/options.txt
        fi
    }
    crashing "${alone[@]}" --steps 1 --lr 0.03 --val-data val.bin --out again --overwrite

    # saving again: the checkpoint is the old one or the new one, and the log has all of its steps
    before() { rm -rf again && cp -r kept again; }
    after() {
        local steps
        steps=$("$damage" json again/log.jsonl step loss | wc -l)
        check "the checkpoint can be opened" usable again
        check "its log has all steps" [ "$steps" -ge 4 ]
    }
    crashing "$train" --resume --out again --steps 5
}

# Every change of a name is followed by a sync of its folder, and the log is on disk before the checkpoint.
syncing() {
    local trace=$tmp/trace at
    rm -rf synced trace
    LD_PRELOAD=$crash CRASH_TRACE=$trace run "${alone[@]}" --steps 2 --val-data val.bin --eval-every 1 --out synced
    sed -i "s|$tmp/||" trace
    check "every rename and removal is synced with its folder" awk '
        /^(rename|remove) synced\// && !/\.partial$/ { open = 1; n++ } /^sync synced$/ { open = 0 } END { exit open || n < 8 }' trace
    check "the new folder is synced with the one that it is in" eval 'tr "\n" ";" <trace | grep -q "mkdir synced;sync $tmp;"'
    check "the log is synced before each checkpoint" awk '
        /^sync synced\/log.jsonl$/ { log_synced = 1 }
        /^rename synced\/state.safetensors$/ { if (!log_synced) exit bad = 1; log_synced = 0; n++ }
        END { exit bad || n != 2 }' trace
    rm -f trace
    LD_PRELOAD=$crash CRASH_TRACE=$trace run "${alone[@]}" --steps 1 --out synced --overwrite
    sed -i "s|$tmp/||" trace
    check "--overwrite: that the old state has gone is synced before the new options come" awk '
        /^remove synced\/state.safetensors$/ { open = 1; n++ } /^sync synced$/ { open = 0 }
        /^rename synced\/options.txt$/ && open { exit bad = 1 } END { exit bad || n != 1 }' trace
}

# ---- files that are cut, replaced or in the way ----

log_copies() {
    local f
    finished copied
    for f in {1..150}; do sed 's/"step":[0-9]*/"step":4/' copied/log.jsonl; done >long.log && mv long.log copied/log.jsonl
    rm -rf copied-before && cp -r copied copied-before
    last=("$train" --resume --out copied --steps 6 "(ulimit -f 16)")
    (trap '' XFSZ && ulimit -f 16 && exec "$train" --resume --out copied --steps 6) >out 2>err
    status=$?
    check "a log that cannot be copied: status 1" [ $status = 1 ]
    check "a log that cannot be copied: one sentence" one_sentence "cannot write copied/log.jsonl: File too large; the previous"
    check "a log that cannot be copied stays" same_files copied copied-before log.jsonl state.safetensors student.safetensors
    check "no partial files" no_partial copied
    finished torn
    printf '{"step":1' >>torn/log.jsonl
    succeeds "$train" --resume --out torn --steps 5
    check "a part of a line at the end of the log goes" [ "$(log_values torn step loss | wc -l)" = 5 ]
}

# The folder of a run is moved away, and another run begins in a new one of its name.
replaced_folder() {
    rm -rf replaced moved
    "${alone[@]}" --steps 3000 --eval-every 20 --out replaced >out 2>err &
    local process=$!
    last=("${alone[@]}" --steps 3000 --eval-every 20 --out replaced)
    wait_for $process has_lines replaced/log.jsonl 2
    mv replaced moved && cp -r teacher replaced
    ends $process
    check "a replaced folder: status 1" [ $status = 1 ]
    check "a replaced folder: one sentence" one_sentence "replaced is no longer the folder in which this run began"
    check "a replaced folder: nothing is written into it" diff -r teacher replaced
}

cut_options() {
    local n size
    finished cut --lr 0.02
    size=$(stat -c %s cut/options.txt)
    cp cut/options.txt whole.txt
    for n in 0 1 100 $((size / 2)) $((size * 3 / 4)) $((size - 30)) $((size - 2)); do
        head -c "$n" whole.txt >cut/options.txt
        refuses 1 "cut/options.txt" "$train" --resume --out cut --steps 6
    done
    sed '1d;$d' whole.txt >cut/options.txt # as older versions wrote it
    succeeds "$train" --resume --out cut --steps 5
}

folder_names() {
    local why long f tested=
    refuses 1 "cannot make the folder text.txt: a file of that name is in the way" "${alone[@]}" --out text.txt/below
    ln -sfn nowhere dangling
    refuses 1 "cannot make the folder dangling: a file of that name is in the way" "${alone[@]}" --out dangling
    long=$(printf 'x%.0s' {1..300})
    refuses 1 "$long: File name too long" "${alone[@]}" --out "deep/$long/out"
    for f in /sys/tikz /proc/tikz; do # mkdir says why, and it is not that there is no such file
        why=$(mkdir $f 2>&1)
        [[ $why != *"No such file"* ]] && [ ! -d $f ] || continue
        refuses 1 "cannot make the folder $f: ${why##*: }" "${alone[@]}" --out $f/out
        tested=$f
    done
    [ "$tested" ] || echo "not tested here: a folder that cannot be made"
}

# A file that is cut while it is mapped: one sentence that names it, and whole files on disk.
cut_data() {
    local process
    cp train.bin cut.bin && rm -rf bus
    last=("${alone[@]}" --data cut.bin --cache 0 --steps 100000 --eval-every 3 --out bus)
    "${last[@]}" >out 2>err &
    process=$!
    wait_for $process has_lines bus/log.jsonl 8
    truncate -s 4096 cut.bin
    ends $process
    check "data that are cut in a run: status 1" [ $status = 1 ]
    check "data that are cut in a run: one sentence" one_sentence "cannot read cut.bin any more: it became shorter"
    check "data that are cut in a run: no partial files" no_partial bus
    cp train.bin cut.bin
    check "data that are cut in a run: the checkpoint is usable" usable bus
    [ -z "$quick" ] || return 0
    cp dev/starter/teacher.safetensors cut.safetensors && rm -rf bus # whose weights are used where they are mapped
    last=("${alone[@]}" --teacher cut.safetensors --steps 100000 --eval-every 1 --out bus)
    "${last[@]}" >out 2>err &
    process=$!
    wait_for $process has_lines bus/log.jsonl 1
    truncate -s 100000 cut.safetensors
    ends $process
    check "a teacher that is cut in a run: one sentence" one_sentence "cannot read cut.safetensors any more"
    check "a teacher that is cut in a run: no partial files" no_partial bus
    [ ! -e bus/student.safetensors ] || succeeds "$infer" --model bus/student.safetensors --max-tokens 2 image0.png
}

# ---- what is not a regular file ----

special_files() {
    local f out
    mkfifo pipe
    for f in pipe folder $([ "$quick" ] || echo /dev/zero); do
        refuses 2 "$f" "$train" --config $f
        refuses 1 "$f" "${alone[@]}" --data $f --out special
        refuses 1 "$f" "${alone[@]}" --student $f --out special
        [ "$quick" ] || for out in val-data teacher init tokenizer; do
            refuses 1 "$f" "${alone[@]}" --$out $f --out special
        done
        refuses 1 "$f" "$infer" --model $f image0.png
        refuses 1 "$f" "$infer" --model teacher.safetensors $f
        refuses 1 "$f" "$eval" --model teacher.safetensors --data $f
    done
    rm -rf special
    for f in options.txt log.jsonl state.safetensors student.safetensors .lock; do
        rm -rf special && cp -r teacher special
        rm -f special/$f && mkfifo special/$f
        refuses 1 "special/$f" "$train" --resume --out special --steps 6
    done
    printf '\xef\xbb\xbfsteps = 2\nlr = 0.5\n' >bom.conf
    succeeds "${alone[@]}" --config bom.conf --out marked
    check "the option after a byte order mark is read" has_lines marked/log.jsonl 2
}

# What a program creates under a name of its own making does not follow a symbolic link.
symbolic_links() {
    local f
    echo precious >precious
    cp precious precious-before
    for f in student.safetensors.partial .lock \
        $([ "$quick" ] || echo state.safetensors.partial options.txt.partial log.jsonl.partial); do
        rm -rf linked && cp -r teacher linked
        ln -sf "$tmp/precious" linked/$f
        refuses 1 "linked/$f: it is a symbolic link" "$train" --resume --out linked --steps 6
        check "what linked/$f points to is left alone" same precious precious-before
        check "the link is left alone" [ -L linked/$f ]
    done
    ln -sf precious x.tex.partial
    refuses 1 "x.tex.partial: it is a symbolic link" "$infer" --model teacher.safetensors image0.png -o x.tex
    ln -sf precious x.json.partial
    refuses 1 "x.json.partial: it is a symbolic link" "$eval" --model teacher.safetensors --data val.bin --json x.json
    mkdir -p figures-linked && ln -sf ../precious figures-linked/000001.tex
    ${CC:-cc} -O1 "$root/dev/starter/generate.c" -o generate -lm
    refuses 1 "figures-linked/000001.tex: it is a symbolic link" ./generate --count 3 --out figures-linked
    check "what they point to is left alone" same precious precious-before
    rm -f x.tex.partial x.json.partial
    ln -s "$tmp/real.tex" link.tex && : >real.tex
    succeeds "$infer" --model teacher.safetensors --max-tokens 5 image0.png -o link.tex
    check "an --output that is a link is followed" [ -s real.tex -a -L link.tex ]
}

# ---- --resume with other settings ----

log_values() { "$damage" json "$1/log.jsonl" "${@:2}"; } # OUT KEY...

# 48 samples: two epochs in steps of 4 images, one in steps of 8, one in steps of 6. With learning rate 0 the loss of a
# batch tells which samples are in it; it is that of a run that takes such steps from the start.
other_batch() {
    local some=("${alone[@]}" --data some.bin --epochs 2)
    "$damage" part dev/starter/train.bin some.bin 0 48
    succeeds "${some[@]}" --batch 4 --lr 0 --out batches
    succeeds "$train" --resume --out batches --batch 8 --epochs 3
    check "an epoch in larger steps: 6 more" [ "$(log_values batches step loss | wc -l)" = 30 ]
    succeeds "${some[@]}" --batch 8 --epochs 3 --lr 0 --out batches-8
    check "an epoch in larger steps: each sample once" \
        [ "$(log_values batches loss | tail -n 6)" = "$(log_values batches-8 loss | tail -n 6)" ]
    succeeds "$train" --resume --out batches --batch 2 --accum 3 --epochs 4
    check "a third size: 8 more" [ "$(log_values batches step loss | wc -l)" = 38 ]
    succeeds "${some[@]}" --batch 2 --accum 3 --epochs 4 --lr 0 --out batches-6
    check "a third size: each sample once" \
        [ "$(log_values batches loss | tail -n 8)" = "$(log_values batches-6 loss | tail -n 8)" ]

    # the learning rate is a function of the images seen: after 96 of 144 images, that of steps of 8 from the start
    succeeds "${some[@]}" --batch 4 --warmup 4 --epochs 3 --steps 24 --out rates
    rm -rf rates-4 && cp -r rates rates-4
    succeeds "$train" --resume --out rates --batch 8 --epochs 3
    check "a schedule that becomes longer is told" \
        grep -q '^the training now ends after 144 images, not 96: the learning rate goes on at 0.000[0-9]*, not 5e-05$' err
    succeeds "${some[@]}" --batch 8 --warmup 2 --epochs 3 --out rates-8
    check "the learning rate goes on where it was" \
        [ "$(log_values rates lr | tail -n 6)" = "$(log_values rates-8 lr | tail -n 6)" ]
    check "and it is not that of another place" \
        [ "$(log_values rates lr | tail -n 6)" != "$(log_values rates-8 lr | head -n 6)" ]
    succeeds "$train" --resume --out rates-4 --epochs 3 --warmup 40
    check "--resume with another --warmup takes it" \
        [ "$(log_values rates-4 lr | sed -n 25p | tr -d ' ')" = "$(awk 'BEGIN { printf "%.9g", 0.001 * 25 / 40 }')" ]
}

# What cannot go on is refused by name, and nothing changes.
refused_settings() {
    local some=("${alone[@]}" --data some.bin --batch 4)
    "$damage" part dev/starter/train.bin some.bin 0 48
    "$damage" part dev/starter/train.bin others.bin 48 48
    rm -rf refused && succeeds "${some[@]}" --epochs 3 --steps 18 --out refused
    rm -rf refused-before && cp -r refused refused-before
    refuses 1 "stopped inside an epoch, and its steps had 4 images; steps of 8 images" \
        "$train" --resume --out refused --epochs 3 --batch 8
    refuses 1 "stopped inside an epoch" "$train" --resume --out refused --epochs 3 --accum 2
    refuses 1 "others.bin holds other samples than the run in refused began with" \
        "$train" --resume --out refused --epochs 3 --data others.bin
    "$damage" part dev/starter/train.bin more.bin 0 50
    refuses 1 "more.bin holds other samples than the run in refused began with" \
        "$train" --resume --out refused --epochs 3 --data more.bin
    refuses 1 "leave --max-tokens as it was" "$train" --resume --out refused --epochs 3 --max-tokens 60
    refuses 1 "--seed 2 is another" "$train" --resume --out refused --epochs 3 --seed 2
    check "what is refused changes nothing" diff -r -x .lock refused refused-before
    refuses 1 "up to --steps 24" "$train" --resume --out refused --epochs 3 --batch 8
    succeeds "$train" --resume --out refused --steps 24 # as the sentence says
    succeeds "$train" --resume --out refused --epochs 3 --batch 8
    check "then the other batch takes over" [ "$(log_values refused step loss | wc -l)" = 30 ]
    mv some.bin elsewhere.bin
    succeeds "$train" --resume --out refused --epochs 4 --data elsewhere.bin
    check "the same data under another name go on" [ "$(log_values refused step loss | wc -l)" = 36 ]
}

# Options that contradict each other, on the command line or with what the run began with.
contradictions() {
    rm -rf own && succeeds "${alone[@]}" --val-data val.bin --eval-every 1 --steps 2 --out own
    cp -r own own-before
    for option in student teacher init tokenizer; do
        refuses 1 "--$option own/best.safetensors is a file that this run would write over" \
            "${alone[@]}" --$option own/best.safetensors --steps 1 --out own --overwrite
    done
    refuses 1 "--student own/student.safetensors is a file that this run would write over" \
        "$train" --student own/student.safetensors --lora 2 --data train.bin --val-data none --teacher none --steps 1 --out own --overwrite
    check "the folder is as it was" diff -r -x .lock own own-before
    echo "alpha = 0.8" >alpha.conf
    succeeds "${taught[@]}" --config alpha.conf --w-ce 0.5 --steps 1 --out weights
    check "a weight on the command line counts more than alpha in a file" eval \
        'grep -q "^w-ce = 0.5$" weights/options.txt && grep -q "^w-soft = 0.8$" weights/options.txt'
    succeeds "${taught[@]}" --w-ce 0.5 --w-soft 0.3 --alpha 0.75 --steps 1 --out weights --overwrite
    check "alpha after the weights counts" eval \
        'grep -q "^w-ce = 0.25$" weights/options.txt && grep -q "^w-soft = 0.75$" weights/options.txt'
    succeeds "$train" --resume --out weights --steps 2 --w-soft 0.5
    check "a run that is resumed has one of its weights changed" eval \
        'grep -q "^w-ce = 0.25$" weights/options.txt && grep -q "^w-soft = 0.5$" weights/options.txt'
    succeeds "$train" --resume --teacher none --out weights --steps 3 # what it began from no longer matters
    refuses 2 "--kl 0.05: with --teacher none there is no reference" \
        "$train" --student teacher.safetensors --reinforce 4 --batch 4 --data train.bin --kl 0.05 --teacher none --out x
    refuses 2 "--init teacher.safetensors is for a new student, but --student teacher.safetensors is a file" \
        "$train" --student teacher.safetensors --init teacher.safetensors --teacher none --data train.bin --out x
    OMPI_COMM_WORLD_SIZE=2 refuses 1 "--write-teacher-cache runs as one process" \
        "$train" --teacher teacher.safetensors --data train.bin --write-teacher-cache x.cache
}

# The best student is the best on the same samples.
other_validation() {
    rm -rf judged && succeeds "${alone[@]}" --val-data val.bin --eval-every 1 --steps 2 --out judged
    succeeds "$train" --resume --out judged --steps 3
    check "the same validation data go on" eval '! grep -q "decided anew" err'
    succeeds "$train" --resume --out judged --val-data none --steps 4
    succeeds "$train" --resume --out judged --val-data val.bin --steps 5
    check "... also after steps without any" eval '! grep -q "decided anew" err'
    "$damage" part dev/starter/train.bin other-val.bin 40 8
    succeeds "$train" --resume --out judged --val-data other-val.bin --steps 6
    check "other validation data begin anew" grep -q "other-val.bin holds other samples than the run was evaluated on so far" err
    check "... and the first student is the best on them" same judged/best.safetensors judged/student.safetensors
}

# A sample that is damaged in a run: what was learned until then is saved, and with sound data the run goes on.
damaged_sample() {
    local few=("${alone[@]}" --data few.bin --batch 4 --steps 8)
    "$damage" part train.bin sound.bin 0 32
    cp sound.bin few.bin
    rm -rf sound damaged && succeeds "${few[@]}" --out sound
    printf x | dd of=few.bin bs=1 seek=100 conv=notrunc status=none
    refuses 1 "few.bin" "${few[@]}" --out damaged
    check "there is a checkpoint" [ -s damaged/state.safetensors ]
    cp sound.bin few.bin
    succeeds "$train" --resume --out damaged
    check "with sound data it ends as an undisturbed run" same_run sound damaged
}

# shellcheck disable=SC2046
run_groups diverging damaged_files signals descriptors $([ "$quick" ] || echo overwriting) syncing log_copies \
    replaced_folder cut_options folder_names cut_data special_files symbolic_links other_batch \
    refused_settings contradictions other_validation damaged_sample
end_test
