#!/bin/bash
# The kernels, the model and a short training on a processor that this machine is not: built by a cross compiler, run by
# qemu-aarch64. Statically linked, because qemu 7 does not start a thread in a program with shared libraries.
#
#   test/aarch64.sh        needs scripts/deps.sh aarch64
. "$(dirname "$0")/check.sh"
cd "$root" || exit 1
for command in aarch64-linux-gnu-gcc qemu-aarch64; do
    command -v $command >/dev/null || {
        echo "not tested here: there is no $command (scripts/deps.sh aarch64 installs it)"
        echo "0 passed, 0 failed"
        exit 0
    }
done
build=build/aarch64 TIME_LIMIT=600
nice make -s -j2 QUICK=1 CC=aarch64-linux-gnu-gcc CUDA=0 MPI=0 FORMATS=0 LDFLAGS=-static BUILD=$build \
    $build/{train_distill,infer,eval,quantize,test_kernels,test_model} 2>&1 | grep -v 'statically linked\|in function' >&2
begin_test aarch64
counts "kernels, dotprod" qemu-aarch64 $build/test_kernels --smoke cpu
TIKZ_CPU=neon counts "kernels, neon" qemu-aarch64 $build/test_kernels --smoke cpu linear_forward norm quantised_linear
TIKZ_CPU=portable counts "kernels, portable" qemu-aarch64 $build/test_kernels --smoke cpu norm linear_forward attention quantised_linear
counts "model" qemu-aarch64 $build/test_model
small=tiny,vision.image_size=48,vision.layers=1,vision.width=32,vision.heads=1,vision.mlp=64
small=$small,lm.layers=1,lm.width=32,lm.heads=2,lm.kv_heads=1,lm.head_dim=16,lm.ffn=64
succeeds qemu-aarch64 $build/train_distill --teacher none --student $small --data dev/starter/val.bin --val-data none \
    --batch 4 --steps 3 --out "$tmp/run"
check "the first line names the kernels" grep -q '^device cpu (dotprod)' "$tmp/err"
check "three steps are logged" [ "$(grep -c '"step"' "$tmp/run/log.jsonl")" = 3 ]
succeeds qemu-aarch64 $build/infer --model "$tmp/run/student.safetensors" --max-tokens 4 dev/starter/example.png
end_test
