#!/bin/bash
# Every script of the tree, through shellcheck.
#
#     shell.sh ROOT
set -u
cd "${1:?usage: shell.sh ROOT}" || exit 2
command -v shellcheck >/dev/null || { echo "skip: shellcheck is missing"; exit 77; }
mapfile -t scripts < <(grep -rlE -m1 '^#!/bin/(ba)?sh' --exclude-dir=.git --exclude-dir='build*' . | sort)
shellcheck -x -S warning "${scripts[@]}" tests/lib/packages.sh
