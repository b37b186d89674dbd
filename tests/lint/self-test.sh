#!/bin/bash
# The lints can fail: each is shown a small tree that is right, and the same tree with one thing wrong.
#
#     self-test.sh FOLDER-OF-THE-LINTS
set -u
lints=$(cd "${1:?usage: self-test.sh FOLDER}" && pwd)
work=$(mktemp -d) || exit 1
trap 'rm -rf "$work"' EXIT
failures=0

make_tree() {
    rm -rf "$work/tree"
    mkdir -p "$work/tree"/{libsnap,vmm-glue/process,vmm-glue/qemu,qapi,tools}
    cd "$work/tree" || exit 1
    echo '#include "track.h" /* pages of 4096 bytes, 1 << 12 */' >libsnap/track.c
    echo '#include <json-c/json.h>' >libsnap/manifest.c
    echo 'char *text = "4096";' >libsnap/text.c
    touch libsnap/libsnap.h libsnap/track.h vmm-glue/process/process.h qapi/save.h tools/command.h
    printf '#include "libsnap.h"\n#include "process/process.h"\n' >vmm-glue/qemu/guest.c
    printf '#include "save.h"\n#include "process/process.h"\n' >qapi/save.c
    printf '#include "command.h"\n#include "qapi/save.h"\n#include "libsnap.h"\n' >tools/vmsnap.c
}

# expect pass|fail LINT WHAT [FILE LINE-TO-ADD]
expect() {
    make_tree
    [ $# -eq 3 ] || echo "$5" >>"$4"
    local got=pass
    "$lints/$2" "$work/tree" >"$work/output" || got=fail
    if [ "$got" != "$1" ]; then
        echo "$2: $3: should $1"
        cat "$work/output"
        failures=1
    fi
}

expect pass includes.sh "a tree that is right"
expect fail includes.sh "libsnap knows no glue" libsnap/track.c '#include "process/process.h"'
expect fail includes.sh "libsnap knows no commands" libsnap/track.c '#include "../qapi/save.h"'
expect fail includes.sh "JSON outside the manifest" libsnap/track.c '#include <json-c/json.h>'
expect fail includes.sh "glue looks into libsnap" vmm-glue/qemu/guest.c '#include "track.h"'
expect fail includes.sh "glue knows no commands" vmm-glue/qemu/guest.c '#include "qapi/save.h"'
expect fail includes.sh "commands look into libsnap" qapi/save.c '#include "track.h"'
expect fail includes.sh "commands know no tool" qapi/save.c '#include "command.h"'
expect fail includes.sh "tools look into libsnap" tools/vmsnap.c '#include "libsnap/track.h"'
expect fail includes.sh "around by angle brackets" qapi/save.c '#include <libsnap/track.h>'

expect pass page-size.py "a tree that is right"
expect fail page-size.py "a number" libsnap/track.c 'int size = 4096;'
expect fail page-size.py "a number with a suffix" libsnap/track.c 'int size = 4096u;'
expect fail page-size.py "a shift" libsnap/track.c 'int size = 1 << 12;'
expect fail page-size.py "a name" libsnap/track.c 'int size = PAGE_SIZE;'
expect fail page-size.py "a huge page" libsnap/track.c 'int size = 1 << 21;'
exit $failures
