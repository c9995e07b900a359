#!/bin/bash
# What `make install` and `make deb` make of built programs: they run from any folder, with manual pages and completions.
#
#   test/test_packages.sh build/BF16      the folder with the programs
#
# Needs what `make` needs. What is checked with man, zsh, fish, dpkg-dev or lintian is left out where that is missing;
# scripts/deps.sh ci installs all but man.
. "$(dirname "$0")/check.sh"
. "$(dirname "$0")/packages.sh"
programs=$(cd "${1:-build/BF16}" && pwd) || exit 1
begin_test packages
has() { command -v "$1" >/dev/null || { echo "not tested here: there is no $1"; return 1; }; }

checkout_with "$tmp/root" "$programs"
succeeds "$tmp/root/packages/install.sh" "$tmp/usr" "${names[@]}"
cd "$tmp" || exit 1
tikzc=$tmp/usr/bin/tikzc

succeeds "$tikzc" infer "$root/dev/starter/example.png"
check "the installed student draws the example" cmp -s out "$root/dev/starter/example.tex"
succeeds "$tikzc" eval --samples 2 --no-greedy
succeeds "$tikzc" train_distill --steps 1 --batch 2 --student base --eval-batches 1 --out run
succeeds "$tikzc" quantize --version
check "--version says a version" grep -qE '^tikz\.c [0-9]+\.[0-9]+$' out
succeeds ln -s "$tikzc" "$tmp/link"
succeeds "$tmp/link" infer --version
refuses 2 "there is no command 'nothing'" "$tikzc" nothing
refuses 2 "there is no command '../../bin/tikzc'" "$tikzc" ../../bin/tikzc
refuses 2 'no command given; expected one of eval, infer, quantize, ' "$tikzc"
succeeds "$tikzc" --help

for name in "${names[@]}"; do # every option of --help is in the manual page and in the completions
    "$tikzc" "$name" --help | grep -oE '^ {2}(-.,|   ) --[a-z0-9-]+' | sed 's/.* --/--/' | sort >options
    gzip -dc "usr/share/man/man1/tikzc-$name.1.gz" | sed 's/\\-/-/g' | grep -oE '^.*\\fB--[a-z0-9-]+' | sed 's/.*\\fB//' | sort >manual
    check "$name: the manual has all options" cmp options manual
    sed -n "s/^        $name:-\*) values='\(.*\)' ;;/\1/p" usr/share/bash-completion/completions/tikzc | tr ' ' '\n' | sort >completions
    check "$name: bash completes all options" cmp options completions
    grep -c "^complete -c tikzc -n '__fish_seen_subcommand_from $name'" usr/share/fish/vendor_completions.d/tikzc.fish >count
    check "$name: fish completes all options" [ "$(cat count)" = "$(wc -l <options)" ]
done
if has man; then
    for page in usr/share/man/man1/*.gz; do
        check "$page: no warning" [ -z "$(MANROFFSEQ='' MANWIDTH=80 man --warnings -E UTF-8 -l -Tutf8 -Z "$page" 2>&1 >/dev/null)" ]
    done
fi

completed() { # WORD...: what bash offers for the last word
    bash -c '. usr/share/bash-completion/completions/tikzc
        COMP_WORDS=("$@") COMP_CWORD=$(($# - 1)); _tikzc; echo "${COMPREPLY[@]}"' bash "$@"
}
check "bash: a command" [ "$(completed tikzc tr)" = train_distill ]
check "bash: an option" [ "$(completed tikzc infer --be)" = --beam ]
check "bash: a value" [ "$(completed tikzc infer --weights '')" = 'q8 q4' ]
check "bash: a file is left to the shell" [ -z "$(completed tikzc infer --model '')" ]
if has zsh; then
    succeeds zsh -f "$root/test/complete.zsh" "$tmp/usr/share/zsh/site-functions" 'tikzc tr' 'train_distill ' 'tikzc infer --be' '--beam=' \
        'tikzc infer --weights=' '--weights=q' 'tikzc infer --chec' '--check '
fi
if has fish; then
    for word in tr 'infer --be' 'infer --weights '; do
        PATH=$tmp/usr/bin:$PATH fish --no-config -c "set -p fish_complete_path $tmp/usr/share/fish/vendor_completions.d
            complete -C 'tikzc $word'"
    done | cut -f 1 >out
    check "fish: a command, an option, values" [ "$(xargs <out)" = 'train_distill --beam q4 q8' ]
fi

if has dpkg-shlibdeps; then
    export MAINTAINER='A. Person <person@debian.org>'
    for n in 1 2; do succeeds "$tmp/root/packages/deb.sh" "$tmp/deb$n" infer; done
    check "the same programs give the same package" cmp deb1/tikzc_*.deb deb2/tikzc_*.deb
    succeeds dpkg-deb -x deb1/tikzc_*.deb unpacked
    succeeds unpacked/usr/bin/tikzc infer --max-tokens 4 "$root/dev/starter/example.png"
    dpkg-deb -f deb1/tikzc_*.deb Depends >out
    check "the package depends on what the programs are linked with" grep -q 'libc6.*libpng16-16' out
    if has lintian; then check "lintian has nothing to say" [ -z "$(lintian --allow-root deb1/tikzc_*.deb 2>/dev/null)" ]; fi
fi
end_test
