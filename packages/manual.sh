#!/usr/bin/env bash
# Writes the manual page of a program, in roff, from what it says at --help: manual.sh PROGRAM.
set -euo pipefail
program=$1 name=$(basename "$1")
here=$(dirname "$0")
"$program" --help | awk -f "$here/options.awk" | awk -F '\t' -v name="$name" -v version="$("$program" --version)" '
    function roff(text) { # a line that roff sets as it stands
        gsub(/\\/, "\\e", text)
        gsub(/-/, "\\-", text)
        return text ~ /^[.\047]/ ? "\\&" text : text
    }
    BEGIN {
        printf ".TH TIKZC\\-%s 1 \"\" \"%s\" \"tikz.c\"\n", toupper(roff(name)), version
    }
    $1 == "usage" {
        sub(/^[^ ]* */, "", $2)
        usage = $2
    }
    $1 == "text" {
        if (!described++) {
            sentence = $2
            sub(/\.( .*)?$/, "", sentence)
            printf ".SH NAME\ntikzc\\-%s \\- %s\n", roff(name), roff(tolower(substr(sentence, 1, 1)) substr(sentence, 2))
            printf ".SH SYNOPSIS\n.B tikzc %s\n%s\n.SH DESCRIPTION\n", roff(name), roff(usage)
        } else print ".PP"
        print roff($2)
    }
    $1 == "heading" { printf "%s %s\n", ($2 == "options" ? ".SH" : ".SS"), ($2 == "options" ? "OPTIONS" : roff($2)) }
    $1 == "option" {
        printf ".TP\n%s\\fB\\-\\-%s\\fR%s\n%s\n", ($3 != "" ? "\\fB\\-" $3 "\\fR, " : ""), roff($2),
            ($4 != "" ? " \\fI" roff($4) "\\fR" : ""), roff($5)
    }
    END {
        print ".SH EXIT STATUS\n0: all is well. 1: something failed, and a sentence on standard error says what. 2: the command " \
            "line is wrong."
        print ".SH SEE ALSO\n.BR tikzc (1)"
    }'
