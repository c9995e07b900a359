#!/usr/bin/env bash
# The floors of the house: includes point down only, and no file includes itself by way of others.
#
#   programs, tests > train, server > metrics, search, generate/ > generate.h > loss, lora > model > vision, dataloader > config, weights, linear > params > dist, kernels > lib
#
# Prints "N passed, M failed": one check per include of a project file.
cd "$(dirname "$0")/.." || exit 1
git ls-files '*.c' '*.h' '*.cu' '*.cuh' '*.cpp' | xargs grep -HE '^#include "' | awk -F'[:"]' '
function floor(f) {
    if (f ~ /^lib\//) return 0
    if (f ~ /^kernels\/[^\/]*$/) return 1
    if (f ~ /^(kernels|dist)\//) return 2
    if (f ~ /^(config|weights|params|linear|rope|qk_norm)\.h$/) return 3
    if (f ~ /^(connector|recompute|vision|vision_init|dataloader)\.h$/) return 4
    if (f ~ /^(flops|model|teacher_output)\.h$/) return 5
    if (f == "loss.cuh" || f == "lora.h") return 6
    if (f == "generate.h") return 7
    if (f ~ /^(metrics\/|generate\/|search\.h)/) return 8
    if (f ~ /^(train|server)\//) return 9
    return 10
}
function clean(path) {  # a/b/../c -> a/c
    while (match(path, /[^\/]+\/\.\.\//)) path = substr(path, 1, RSTART - 1) substr(path, RSTART + RLENGTH)
    return path
}
function fail(what) { print "failed: " what; failed++ }
function visit(f,    i, n, list) {  # depth first; state 1: on the path, 2: done
    state[f] = 1
    n = split(edges[f], list, " ")
    for (i = 1; i <= n; i++) {
        if (state[list[i]] == 1) fail("a circle: " f " and " list[i] " include each other")
        if (!state[list[i]]) visit(list[i])
    }
    state[f] = 2
}
{ line[NR] = $0; file[NR] = $1; name[NR] = $3; known[$1] }
END {
    for (i = 1; i <= NR; i++) {
        folder = file[i]
        sub(/[^\/]*$/, "", folder)
        target = clean(folder name[i])
        if (!(target in known)) continue  # of the system, or found by the include path
        edges[file[i]] = edges[file[i]] " " target
        if (floor(target) > floor(file[i])) fail(file[i] " includes " target ", which is above it")
        else passed++
        if (file[i] ~ /^lib\// && target !~ /^lib\//) fail(file[i] " includes " target ", which is not of lib/")
    }
    for (f in known) if (!state[f]) visit(f)
    print passed + 0 " passed, " failed + 0 " failed"
    exit failed > 0
}'
