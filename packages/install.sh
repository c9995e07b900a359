#!/usr/bin/env bash
# Installs built programs, and what they need to run from any folder: install.sh PREFIX PROGRAM...
#
#   PREFIX/bin/tikzc           the one command: tikzc infer img.png
#   PREFIX/lib/tikzc           the programs
#   PREFIX/share/tikzc         models and data that ship, the web page
#   PREFIX/share/man, .../bash-completion, zsh, fish     manual pages and completions
set -euo pipefail
cd "$(dirname "$0")/.."
prefix=$1
shift
share=$prefix/share
put() { install -D -m 644 "$1" "$2"; } # FILE PATH

install -D packages/tikzc.sh "$prefix/bin/tikzc"
install -d "$prefix/lib/tikzc"
install "$@" "$prefix/lib/tikzc"
for file in dev/starter/{student,teacher,tokenizer}.safetensors dev/starter/{train,val,test}.bin dev/starter/example.png \
    dev/formula/*.safetensors web/*.{html,css,js,svg,png}; do
    [ ! -f "$file" ] || put "$file" "$share/tikzc/$file"
done
manuals=$share/man/man1
install -d "$manuals"
for program in "$@"; do
    packages/manual.sh "./$program" | gzip -9n >"$manuals/tikzc-$program.1.gz"
done
awk -v programs="$*" '/^@PROGRAMS@$/ { n = split(programs, name, " "); for (i = 1; i <= n; i++) print ".BR tikzc\\-" name[i] " (1)" (i < n ? "," : "."); next } 1' packages/tikzc.1 | gzip -9n >"$manuals/tikzc.1.gz"
completions=$(mktemp)
trap 'rm -f "$completions"' EXIT
while read -r shell path; do
    packages/completion.sh "$shell" "${@/#/./}" >"$completions"
    put "$completions" "$share/$path"
done <<'SHELLS'
bash bash-completion/completions/tikzc
zsh zsh/site-functions/_tikzc
fish fish/vendor_completions.d/tikzc.fish
SHELLS
echo "installed in $prefix; try: $prefix/bin/tikzc infer IMAGE"
