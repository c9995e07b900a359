#!/bin/sh
# tikzc COMMAND OPTION...: the installed programs of tikz.c under one name, because some have names that others use, too.
programs=$(dirname "$(readlink -f "$0")")/../lib/tikzc
command=${1:-}
if [ -n "$command" ] && [ "${command#*/}" = "$command" ] && [ -f "$programs/$command" ] && [ -x "$programs/$command" ]; then
    shift
    exec "$programs/$command" "$@"
fi
commands=$(cd "$programs" && echo * | sed 's/ /, /g')
case $command in
-h | --help) echo "usage: tikzc COMMAND [options]; COMMAND is one of $commands; tikzc COMMAND --help says more" ;;
'')
    echo "tikzc: error: no command given; expected one of $commands" >&2
    exit 2
    ;;
*)
    echo "tikzc: error: there is no command '$command'; expected one of $commands" >&2
    exit 2
    ;;
esac
