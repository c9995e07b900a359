# What the tests of the programs share, in the folder $tmp: small data, a small shape, commands that train,
# and ways to look at and to stop a run. To be sourced after begin_test, with `programs` set.
# shellcheck shell=bash disable=SC2034,SC2154

train=$programs/train_distill infer=$programs/infer eval=$programs/eval quantize=$programs/quantize
damage=$tmp/damage
number_of() { "$damage" json "$1" "$2" | sed -n "$3p" | tr -d ' '; } # FILE KEY LINE

${CC:-cc} -std=c11 -D_GNU_SOURCE -O1 "$root/test/damage.c" -o "$damage" -lz -lm -lpthread || exit 1
ln -s "$root/dev" dev
starter=dev/starter/train.bin
"$damage" part $starter train.bin 0 64 && "$damage" part $starter val.bin 64 8 || exit 1
for i in 0 1 2; do "$damage" image val.bin image$i.png $i; done
: >empty
mkdir folder
echo "this is a text" >text.txt
shape=tiny,vision.image_size=48,vision.layers=1,vision.width=32,vision.heads=1,vision.mlp=64
shape=$shape,lm.layers=1,lm.width=32,lm.heads=2,lm.kv_heads=1,lm.head_dim=16,lm.ffn=64
wide=${shape/lm.width=32/lm.width=48} # other widths, the same number of image tokens
alone=("$train" --data train.bin --val-data none --batch 8 --teacher none)
taught=("$train" --data train.bin --val-data none --batch 8 --teacher teacher.safetensors --student "$shape")

# The log without speeds.
log_of() {
    "$damage" json "$1/log.jsonl" step loss ce accuracy lr norm soft entropy embed layer
    sed -n '/"val"/s/,"time":[0-9]*//p' "$1/log.jsonl"
}

same_run() { # A B
    same "$1/student.safetensors" "$2/student.safetensors" && same "$1/state.safetensors" "$2/state.safetensors" &&
        [ "$(log_of "$1")" = "$(log_of "$2")" ]
}

# interrupted SIGNAL LINES OUT OPTIONS...: stops a run after that many lines of its log. On a busy machine the run may
# be over before the signal comes: then it is tried again.
interrupted() {
    local signal=$1 count=$2 out=$3 process
    shift 3
    last=("$@" --out "$out" --overwrite)
    for _ in 1 2 3 4 5; do
        rm -f "$out/log.jsonl"
        env --default-signal=HUP,INT,TERM,USR1 "${last[@]}" >out 2>err & # bash and nohup have it ignore some
        process=$!
        wait_for $process has_lines "$out/log.jsonl" "$count"
        kill -"$signal" $process 2>/dev/null && break
        wait $process
    done
    wait $process 2>/dev/null
    status=$?
}

# The checkpoint in a folder can be opened, and training goes on from it.
usable() { # OUT
    rm -rf usable
    cp -r "$1" usable
    "$infer" --model usable/student.safetensors --max-tokens 2 image0.png >out 2>err &&
        "$train" --resume --out usable --steps 0 --epochs 1 >out 2>err
}
