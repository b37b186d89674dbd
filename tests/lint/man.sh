#!/bin/bash
# The man page and --help name the same commands and the same options.
#
#     man.sh VMSNAP ROOT
set -u
vmsnap=${1:?usage: man.sh VMSNAP ROOT}
page=${2:?usage: man.sh VMSNAP ROOT}/docs/man/vmsnap.1
bad=0

# The part of the page under ".SS NAME", or for vmsnap itself under ".SH OPTIONS".
section() {
    awk -v want="$1" '/^\.S[SH] / { on = ($0 == want) } on' "$page" | sed 's/\\-/-/g; s/\\f[BIRP]//g'
}

# The options of a text, long and short, one a line.
options_of_help() {
    grep -oE '^  (-[a-z], )?--[a-z-]+' | grep -oE -- '--[a-z-]+|-[a-z]\b' | sort -u
}
options_of_page() {
    grep -E '^\.(B|BR|BI|IR) ' | grep -oE -- '(^| |, )(--[a-z-]+|-[a-z])\b' | grep -oE -- '--?[a-z-]+' | sort -u
}

compare() { # NAME HELP-FILE SECTION
    local common='^--json$|^--connect$|^--help$|^-h$'
    local in_help in_page
    in_help=$("$vmsnap" ${1:+"$1"} --help | options_of_help)
    in_page=$(section "$2" | options_of_page)
    if [ -n "$1" ]; then
        in_help=$(grep -vE -- "$common" <<<"$in_help")
        in_page=$(grep -vE -- "$common" <<<"$in_page")
    fi
    if [ "$in_help" != "$in_page" ]; then
        echo "vmsnap $1: --help (<) and the man page (>) name different options:"
        diff <(echo "$in_help") <(echo "$in_page")
        bad=1
    fi
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
exit $bad
