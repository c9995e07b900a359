#!/usr/bin/env bash
# Measures what a second data-parallel rank gains on a machine with two free processor cores: the starter distillation
# with one rank of one thread, and with two ranks of one thread each, alternately. Prints the median tokens/s of both,
# their ratio (at best 2; the goal is 1.8), and the median time per step that the ranks wait in collectives.
#
#   dev/bench/ranks.sh [ROUNDS [STEPS]]        default 3 and 40: about two minutes; needs mpirun
set -euo pipefail
cd "$(dirname "$0")/../.."
rounds=${1:-3} steps=${2:-40}
tmp=$(mktemp -d)
trap 'rm -rf "$tmp"' EXIT
[ "$(id -u)" -ne 0 ] || export OMPI_ALLOW_RUN_AS_ROOT=1 OMPI_ALLOW_RUN_AS_ROOT_CONFIRM=1

run() { # RANKS NAME
    mpirun --oversubscribe -n "$1" ./train_distill --device cpu --threads 1 --val-data none --steps "$steps" \
        --out "$tmp/$2" >/dev/null 2>"$tmp/$2.err" || { cat "$tmp/$2.err" >&2; exit 1; }
}
for ((i = 0; i < rounds; i++)); do
    run 1 "one.$i"
    run 2 "two.$i"
done
python3 - "$tmp" "$rounds" <<'PYTHON'
import json, statistics, sys

folder, rounds = sys.argv[1], int(sys.argv[2])


def steps(name):
    """The steps of all rounds except the first two lines of each log, which still fill the image cache."""
    for i in range(rounds):
        with open(f'{folder}/{name}.{i}/log.jsonl') as f:
            yield from [json.loads(line) for line in f][2:]


rate = {name: statistics.median(s['tokens_per_second'] for s in steps(name)) for name in ('one', 'two')}
wait = 1e3 * statistics.median(s['comm'] for s in steps('two'))
print(f'one rank {rate["one"]:.0f} tokens/s, two ranks {rate["two"]:.0f}, ratio {rate["two"] / rate["one"]:.2f}; '
      f'waiting in collectives {wait:.1f} ms a step')
PYTHON
