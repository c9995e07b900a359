#!/bin/sh
# tikzc COMMAND OPTION...: the installed programs of tikz.c under one name, because some have names that others use, too.
programs=$(dirname "$(readlink -f "$0")")/../lib/tikzc
command=${1:-}
if [ -n "$command" ] && [ "${command#*/}" = "$command" ] && [ -x "$programs/$command" ]; then
    shift
    exec "$programs/$command" "$@"
fi
{
    [ -z "$command" ] || [ "$command" = --help ] || [ "$command" = -h ] || echo "tikzc: error: there is no command '$command'"
    echo "usage: tikzc COMMAND [options]"
    for program in "$programs"/*; do echo "  tikzc $(basename "$program") --help"; done
} >&2
[ "$command" = --help ] || [ "$command" = -h ] || exit 2
