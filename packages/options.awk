# Reads what a program says at --help, and writes a line for each thing in it, with tabs between the fields:
#   usage TEXT        text TEXT        heading TEXT        option LONG SHORT ARGUMENT HELP
# LONG and SHORT are without their dashes, ARGUMENT is empty for a flag.
function put() {
    if (long != "") print "option", long, short, argument, help
    long = ""
}
BEGIN { OFS = "\t" }
/^usage: / { print "usage", substr($0, 8); next }
/^                              [^ ]/ && long != "" { # 30 spaces: the help goes on
    sub(/^ +/, "")
    help = help == "" ? $0 : help " " $0
    next
}
/^  (-.,|   ) --/ {
    put()
    short = substr($0, 3, 1) == "-" ? substr($0, 4, 1) : ""
    names = $0
    help = ""
    if (length($0) > 30 && substr($0, 29, 2) == "  ") {
        names = substr($0, 1, 28)
        help = substr($0, 31)
    }
    sub(/^ *(-., )?--/, "", names)
    sub(/ +$/, "", names)
    space = index(names, " ")
    long = space ? substr(names, 1, space - 1) : names
    argument = space ? substr(names, space + 1) : ""
    next
}
{ put() }
/^[^ ].*:$/ { print "heading", substr($0, 1, length($0) - 1); next }
/^[^ ]/ { print "text", $0 }
END { put() }
