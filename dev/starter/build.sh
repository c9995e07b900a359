#!/usr/bin/env bash
# Rebuilds everything that ships in dev/starter, from the generator to the distilled student: about two hours on two
# cores with AMX. Works in build/starter and copies the results here at the end. Needs `scripts/deps.sh all` and the
# Python packages of scripts/requirements.txt (PYTHON names the interpreter that has them).
set -euo pipefail
cd "$(dirname "$0")/../.."
out=build/starter
python=${PYTHON:-python3}
mkdir -p $out
cc -O2 -o $out/generate dev/starter/generate.c -lm

$out/generate --seed 2 --count 20000 >$out/texts
$python scripts/train_tokenizer.py --texts $out/texts --out $out/tokenizer.safetensors
render="$python dev/starter/render.py --generator $out/generate --tokenizer $out/tokenizer.safetensors"
$render --batch 100 --skip 0 --count 300 --out $out/test.bin
$render --batch 100 --skip 500 --count 300 --out $out/val.bin
$render --batch 100 --skip 1000 --count 3600 --out $out/train.bin
$render --skip 9000 --count 40000 --out $out/teacher-train.bin

./train_distill --teacher none --student base --tokenizer $out/tokenizer.safetensors --data $out/teacher-train.bin \
    --val-data $out/val.bin --batch 24 --steps 40000 --lr 1.5e-3 --lr-final 0.01 --cache 6000 --out $out/teacher --overwrite
cp $out/teacher/student.safetensors $out/teacher.safetensors
./train_distill --teacher $out/teacher.safetensors --data $out/train.bin --val-data $out/val.bin --out $out/student \
    --overwrite
cp $out/student/student.safetensors $out/student.safetensors
for f in tokenizer.safetensors teacher.safetensors student.safetensors train.bin val.bin test.bin; do
    cp $out/$f dev/starter/$f
done
