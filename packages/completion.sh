#!/usr/bin/env bash
# Writes what completes the command line of tikzc in a shell, from what the programs say at --help:
# completion.sh bash|zsh|fish PROGRAM...
set -euo pipefail
shell=$1
shift
here=$(dirname "$0")
for program in "$@"; do # lines PROGRAM option LONG SHORT ARGUMENT HELP
    "$program" --help | awk -f "$here/options.awk" | sed -n "s/^option/$(basename "$program")\t&/p"
done | awk -F '\t' -v OFS='\t' -v shell="$shell" '
    function words(argument) { # the values that there are, or nothing
        if (argument !~ /\|/ || argument ~ /[^a-z0-9|-]/) return ""
        gsub(/\|/, " ", argument)
        return argument
    }
    function quoted(text) { gsub(/\047/, "\047\\\047\047", text); return "\047" text "\047" }
    function plain(text) { gsub(/\[/, "(", text); gsub(/\]/, ")", text); gsub(/:/, ",", text); return text } # what _arguments takes as a description
    !seen[$1]++ { programs = programs (programs == "" ? "" : " ") $1 }
    {
        option[$1] = option[$1] " --" $3
        if (words($5) != "") cases[$1] = cases[$1] sprintf("            %s:--%s) values=%s ;;\n", $1, $3, quoted(words($5)))
        if ($5 != "") takes[$1] = takes[$1] (takes[$1] == "" ? "" : "|") $1 ":--" $3
        fish = fish sprintf("complete -c tikzc -n %s -l %s%s%s -d %s\n", quoted("__fish_seen_subcommand_from " $1), $3,
            ($4 != "" ? " -s " $4 : ""), ($5 == "" ? "" : words($5) != "" ? " -x -a " quoted(words($5)) : " -r"), quoted($6))
        value = $5 == "" ? "" : words($5) != "" ? ":" plain($5) ":(" words($5) ")" : ":" plain($5) ":_files"
        zsh[$1] = zsh[$1] sprintf(" \\\n            %s", quoted("--" $3 ($5 == "" ? "" : "=") "[" plain($6) "]" value))
    }
    END {
        n = split(programs, name, " ")
        if (shell == "bash") {
            print "_tikzc() {"
            print "    local word=${COMP_WORDS[COMP_CWORD]} before=${COMP_WORDS[COMP_CWORD-1]} program=${COMP_WORDS[1]} values="
            print "    COMPREPLY=()"
            print "    if [ \"$COMP_CWORD\" = 1 ]; then"
            printf "        mapfile -t COMPREPLY < <(compgen -W %s -- \"$word\")\n        return\n    fi\n", quoted(programs)
            print "    case $program:$before in"
            for (k = 1; k <= n; k++) printf "%s", cases[name[k]]
            print "    *) case $program:$before in"
            for (k = 1; k <= n; k++) if (takes[name[k]] != "") printf "        %s) return ;;\n", takes[name[k]]
            print "        esac"
            print "        case $program:$word in"
            for (k = 1; k <= n; k++) printf "        %s:-*) values=%s ;;\n", name[k], quoted(substr(option[name[k]], 2))
            print "        esac ;;\n    esac"
            print "    [ -z \"$values\" ] || mapfile -t COMPREPLY < <(compgen -W \"$values\" -- \"$word\")"
            print "}\ncomplete -o default -F _tikzc tikzc"
        } else if (shell == "fish") {
            printf "complete -c tikzc -n __fish_use_subcommand -f -a %s\n%s", quoted(programs), fish
        } else if (shell == "zsh") {
            printf "#compdef tikzc\nif ((CURRENT == 2)); then\n    compadd %s\nelse\n    case $words[2] in\n", programs
            for (k = 1; k <= n; k++) printf "    %s)\n        shift words\n        ((CURRENT--))\n        _arguments%s \\\n            %s ;;\n",
                name[k], zsh[name[k]], quoted("*:file:_files")
            print "    esac\nfi"
        } else {
            print "completion.sh: the shell is bash, zsh or fish" >"/dev/stderr"
            exit 2
        }
    }'
