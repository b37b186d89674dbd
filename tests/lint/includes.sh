#!/bin/bash
# Dependencies run one way: tools -> qapi -> vmm-glue -> libsnap. Fails on an include that runs backwards.
#
#     includes.sh ROOT
#
# An include in quotes is looked up beside the file, then from the folders on the compiler's path. What it leads to
# must be in what the folder may know:
#   libsnap   itself; json-c in the manifest files only
#   vmm-glue  itself, and libsnap.h
#   qapi      itself, vmm-glue, and libsnap.h
#   tools     itself, qapi, vmm-glue, and libsnap.h
set -u
root=${1:?usage: includes.sh ROOT}
cd "$root" || exit 2
bad=0

complain() { # FILE:LINE TEXT
    echo "$1: $2"
    bad=1
}

# The file that header $2, as written in a file of folder $1, leads to; nothing when there is none.
find_header() {
    local place
    [ "$2" = schema-handlers.h ] && echo qapi/schema-handlers.h && return # made by the build
    for place in "$1" libsnap vmm-glue .; do
        [ -f "$place/$2" ] && realpath --relative-to=. "$place/$2" && return
    done
}

allowed() { # FOLDER-OF-THE-INCLUDER FILE
    [ "$2" = libsnap/libsnap.h ] && return 0
    case $1 in
    libsnap) [[ $2 == libsnap/* ]] ;;
    vmm-glue/*) [[ $2 == vmm-glue/* ]] ;;
    qapi) [[ $2 == qapi/* || $2 == vmm-glue/* ]] ;;
    tools) [[ $2 == tools/* || $2 == qapi/* || $2 == vmm-glue/* ]] ;;
    *) return 1 ;;
    esac
}

while IFS=: read -r file line text; do
    header=$(sed -E 's/^[^"]*"([^"]*)".*/\1/' <<<"$text")
    folder=$(dirname "$file")
    allowed "$folder" "$(find_header "$folder" "$header")" || complain "$file:$line" "may not include \"$header\""
done < <(grep -rnE --include='*.[ch]' '^[[:space:]]*#[[:space:]]*include[[:space:]]*"' libsnap vmm-glue qapi tools)

while IFS=: read -r file line text; do
    case $file in libsnap/manifest*) ;; *) complain "$file:$line" "json-c belongs into the manifest" ;; esac
done < <(grep -rnE --include='*.[ch]' '<json-c/' libsnap)

# An umbrella over the rules above: angle brackets do not get around them.
while IFS=: read -r file line text; do
    complain "$file:$line" "project headers are included in quotes"
done < <(grep -rnE --include='*.[ch]' 'include[[:space:]]*<(libsnap\.h|qapi/|vmm-glue/|process/|qemu/|libsnap/)' libsnap vmm-glue qapi tools)

exit $bad
