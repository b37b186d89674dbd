#!/bin/sh
# A static library with the global symbols of a list, and no others: all objects are linked into one, in which the
# rest becomes local. So it can be linked into a program that has functions of the same names.
#
#     one-object.sh OUT LIST OBJCOPY AR LINK-COMMAND...      the command that makes one object, but for its -o
set -eu
out=$1 list=$2 objcopy=$3 ar=$4
shift 4
object=${out%.a}.o
trap 'rm -f "$object"' EXIT
"$@" -o "$object"
"$objcopy" --keep-global-symbols="$list" "$object"
rm -f "$out"
"$ar" rcs "$out" "$object"
