#!/usr/bin/env bash
# What a second rank brings on a machine with two free processor cores: the starter's distillation with one process of one
# thread, and with two ranks of one thread each, in turn. Prints the median tokens/s of both, their ratio (2 at best; 1.8 is
# asked), and the share of the step in which the slower rank waited for messages (5 % at most).
#
#   dev/bench/ranks.sh [ROUNDS [STEPS]]        default 3 and 40: about two minutes; needs mpirun
set -euo pipefail
cd "$(dirname "$0")/../.."
rounds=${1:-3} steps=${2:-40}
tmp=$(mktemp -d)
trap 'rm -rf "$tmp"' EXIT

export OMPI_ALLOW_RUN_AS_ROOT=1 OMPI_ALLOW_RUN_AS_ROOT_CONFIRM=1 OMP_NUM_THREADS=1

run() { # NAME RANKS
    mpirun -q --bind-to none --oversubscribe -n "$2" ./train_distill --device cpu --threads 1 --val-data none \
        --steps "$steps" --out "$tmp/$1" >/dev/null 2>"$tmp/$1.err" || { cat "$tmp/$1.err" >&2; exit 1; }
}
for ((i = 0; i < rounds; i++)); do
    run "one.$i" 1
    run "two.$i" 2
done
python3 - "$tmp" "$rounds" <<'PYTHON'
import json, re, statistics, sys

folder, rounds = sys.argv[1], int(sys.argv[2])


def steps(name):
    """The steps of all rounds but the first two of each: those still load images and settle memory."""
    for i in range(rounds):
        with open(f'{folder}/{name}.{i}/log.jsonl') as f:
            yield from [json.loads(line) for line in f][2:]


def waiting():
    """The share of each run of two ranks, in per cent, in which the slower rank had nothing to do but wait for messages."""
    for i in range(rounds):
        with open(f'{folder}/two.{i}/log.jsonl') as f:
            seconds = sum(json.loads(line).get('comm', 0) for line in f)
        with open(f'{folder}/two.{i}.err') as f:
            yield 100 * seconds / max(1, int(re.findall(r'\(100 %\), in ([0-9]+) s', f.read())[-1]))


rate = {name: statistics.median(s['tokens_per_second'] for s in steps(name)) for name in ('one', 'two')}
print(f'one rank {rate["one"]:.0f} tokens/s, two ranks {rate["two"]:.0f}, ratio {rate["two"] / rate["one"]:.2f}; '
      f'waiting for messages {statistics.median(waiting()):.1f} % of the time')
PYTHON
