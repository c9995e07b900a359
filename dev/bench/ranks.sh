#!/usr/bin/env bash
# What a second rank brings on a machine with two free processor cores: the starter's distillation with one rank of one
# thread, and with two data-parallel ranks of one thread each, in turn. Prints the median tokens/s of both, their ratio
# (2 at best; 1.8 is asked), and the share of the step in which the ranks waited for each other (5 % at most).
#
#   dev/bench/ranks.sh [ROUNDS [STEPS]]        default 3 and 40: about two minutes
set -euo pipefail
cd "$(dirname "$0")/../.."
rounds=${1:-3} steps=${2:-40}
tmp=$(mktemp -d)
trap 'rm -rf "$tmp"' EXIT

run() { # NAME OPTIONS...
    local name=$1
    shift
    ./train_distill --device cpu --threads 1 --val-data none --steps "$steps" --out "$tmp/$name" "$@" >/dev/null 2>"$tmp/$name.err" ||
        { cat "$tmp/$name.err" >&2; exit 1; }
}
for ((i = 0; i < rounds; i++)); do
    run "one.$i" --ranks 1
    run "two.$i" --ranks 2 --students 2
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
    """The share of the time in which a rank waited for the other or its messages, in per cent, as each run printed it."""
    for i in range(rounds):
        with open(f'{folder}/two.{i}.err') as f:
            yield sum(map(float, re.findall(r'for (?:slower students|messages) \(([0-9.]+) %', f.read())))


rate = {name: statistics.median(s['tokens_per_second'] for s in steps(name)) for name in ('one', 'two')}
print(f'one rank {rate["one"]:.0f} tokens/s, two ranks {rate["two"]:.0f}, ratio {rate["two"] / rate["one"]:.2f}; '
      f'waiting for the other rank {statistics.median(waiting()):.1f} % of the time')
PYTHON
