#!/bin/bash
# The man pages and --help name the same commands and the same options.
#
#     man.sh VMSNAP VMSNAPD ROOT [MICROVM]
set -u
vmsnap=${1:?usage: man.sh VMSNAP VMSNAPD ROOT}
vmsnapd=${2:?usage: man.sh VMSNAP VMSNAPD ROOT}
page=${3:?usage: man.sh VMSNAP VMSNAPD ROOT}/docs/man/vmsnap.1
helper_page=$3/docs/man/vmsnapd.1
bad=0

# The part of a page under ".SS NAME", or for a program itself under ".SH OPTIONS".
section() { # HEAD PAGE
    awk -v want="$1" '/^\.S[SH] / { on = ($0 == want) } on' "$2" | sed 's/\\-/-/g; s/\\f[BIRP]//g'
}

# The options of a text, long and short, one a line.
options_of_help() {
    grep -oE '^  (-[a-z], )?--[a-z-]+' | grep -oE -- '--[a-z-]+|-[a-z]\b' | sort -u
}
options_of_page() {
    grep -E '^\.(B|BR|BI|IR) ' | grep -oE -- '(^| |, )(--[a-z-]+|-[a-z])\b' | grep -oE -- '--?[a-z-]+' | sort -u
}

compare() { # NAME SECTION
    local common='^--json$|^--connect$|^--help$|^-h$'
    local in_help in_page
    in_help=$("$vmsnap" ${1:+"$1"} --help | options_of_help)
    in_page=$(section "$2" "$page" | options_of_page)
    if [ -n "$1" ]; then
        in_help=$(grep -vE -- "$common" <<<"$in_help")
        in_page=$(grep -vE -- "$common" <<<"$in_page")
    fi
    report "vmsnap $1" "$in_help" "$in_page"
}

report() { # WHAT OPTIONS-OF-HELP OPTIONS-OF-PAGE
    [ "$2" = "$3" ] && return
    echo "$1: --help (<) and the man page (>) name different options:"
    diff <(echo "$2") <(echo "$3")
    bad=1
}

commands=$("$vmsnap" --help | sed -n '/^Commands:/,/^$/s/^  \([a-z]*\) .*/\1/p')
[ -n "$commands" ] || { echo "vmsnap --help lists no commands"; exit 1; }
compare "" ".SH OPTIONS"
for command in $commands; do
    grep -q "^\.SS $command\$" "$page" || { echo "the man page lacks the command $command"; bad=1; }
    compare "$command" ".SS $command"
done
for command in $(sed -n '/^\.SH COMMANDS/,/^\.SH/s/^\.SS \([a-z]*\)$/\1/p' "$page"); do
    grep -qx "$command" <<<"$commands" || { echo "the man page has a command $command that vmsnap lacks"; bad=1; }
done
[ -z "${4:-}" ] || report microvm "$("$4" --help | options_of_help)" \
    "$(section ".SH OPTIONS" "$3/docs/man/microvm.1" | options_of_page)"
report vmsnapd "$("$vmsnapd" --help | options_of_help)" "$(section ".SH OPTIONS" "$helper_page" | options_of_page)"
exit $bad
