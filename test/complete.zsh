# What zsh completes in a terminal: zsh -f test/complete.zsh FOLDER WORDS PATTERN [WORDS PATTERN ...]
#
# Loads the completions in FOLDER into a fresh shell, types WORDS and a tab, and waits until what the terminal shows matches
# PATTERN. Status 1, with what it shows, if that does not come.
zmodload zsh/zpty zsh/datetime
await() { # PATTERN
    local part seen= end=$((EPOCHREALTIME + 20))
    while [[ $seen != *$~1* ]]; do
        ((EPOCHREALTIME < end)) || { print -r -- "no '$1' in '$seen'" | cat -v; return 1; }
        if zpty -r -t terminal part; then seen+=$part; else sleep 0.05; fi
    done
}
folder=$1
shift
zpty terminal env TERM=dumb zsh -f -i
zpty -w terminal "PS1=; fpath=($folder \$fpath); autoload -Uz compinit; compinit -D -u; print RE''ADY"
await READY || exit 1
while (($#)); do
    zpty -n -w terminal "$1"$'\t'
    await "$2" || exit 1
    zpty -n -w terminal $'\x15' # clears the line
    shift 2
done
