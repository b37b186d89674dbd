#!/bin/bash
# The lints and the summary can fail. A lint is shown a small tree that is right, and the same tree with one thing wrong.
#
#     self-test.sh FOLDER-OF-THE-LINTS
set -u
lints=$(cd "${1:?usage: self-test.sh FOLDER}" && pwd)
work=$(mktemp -d) || exit 1
trap 'rm -rf "$work"' EXIT
failures=0

make_tree() {
    rm -rf "$work/tree"
    mkdir -p "$work/tree"/{docs,libsnap,vmm-glue/process,vmm-glue/qemu,qapi,tools}
    cd "$work/tree" || exit 1
    echo '#include "track.h" /* pages of 4096 bytes, 1 << 12 */' >libsnap/track.c
    echo '#include <json-c/json.h>' >libsnap/manifest.c
    echo 'char *text = "4096";' >libsnap/text.c
    touch libsnap/libsnap.h libsnap/track.h vmm-glue/process/process.h qapi/save.h tools/command.h
    printf '#include "libsnap.h"\n#include "process/process.h"\n' >vmm-glue/qemu/guest.c
    printf '#include "save.h"\n#include "process/process.h"\n#include "schema-handlers.h"\n' >qapi/save.c
    printf '#include "command.h"\n#include "qapi/save.h"\n#include "libsnap.h"\n' >tools/vmsnap.c
    printf '##\n# @A:\n#\n# It.\n##\n%s\n' "{ 'struct': 'A', 'data': {} }" >qapi/qapi-schema.json
    [ -f "$work/page" ] || "$lints/../../qapi/gen-schema.py" qapi/qapi-schema.json --reference "$work/page"
    cp "$work/page" docs/qmp-reference.md
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
expect fail includes.sh "glue knows no made commands" vmm-glue/qemu/guest.c '#include "schema-handlers.h"'
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

expect pass qmp-reference.sh "a tree that is right"
expect fail qmp-reference.sh "a page that says more" docs/qmp-reference.md 'And more.'
expect fail qmp-reference.sh "a schema that is wrong" qapi/qapi-schema.json "{ 'command': 'a' }"
expect fail qmp-reference.sh "a schema that says more" qapi/qapi-schema.json "$(printf '##\n# @B:\n#\n# It.\n##\n%s' "{ 'struct': 'B', 'data': {} }")"

# A library of its own, called thing: expect_symbols pass|fail WHAT SONAME HEADER SOURCE
expect_symbols() {
    local got=pass
    rm -rf "$work/thing"
    mkdir "$work/thing"
    echo "$4" >"$work/thing/thing.h"
    echo "$5" | cc -x c -shared -fPIC -Wl,-soname,"$3" -o "$work/thing/thing.so" - || exit 1
    echo "$5" | cc -x c -c -o "$work/thing/thing.o" - && ar rcs "$work/thing/thing.a" "$work/thing/thing.o"
    "$lints/symbols.py" cc -- "$work/thing/thing.h" "$work/thing"/thing.{so,a} >"$work/output" 2>&1 || got=fail
    if [ "$got" != "$1" ]; then
        echo "symbols.py: $2: should $1"
        cat "$work/output"
        failures=1
    fi
}

header='int a(void); /* int no(void); */ typedef struct { int (*no)(int n); } T; static inline int no(void) { return 1; }'
expect_symbols pass "a library that is right" thing.so.0 "$header" 'int a(void) { return 1; }'
expect_symbols fail "a function that is not there" thing.so.0 "$header int b(void);" 'int a(void) { return 1; }'
expect_symbols fail "a function too many" thing.so.0 "$header" 'int a(void) { return 1; } int b(void) { return 2; }'
expect_symbols fail "a variable" thing.so.0 "$header" 'int a(void) { return 1; } int b;'
expect_symbols fail "another name" thing.so.1 "$header" 'int a(void) { return 1; }'

# The last line of ./check and its exit status: expect_summary STATUS LINE RESULT...
expect_summary() {
    local status=$1 line=$2 got_line got_status
    shift 2
    printf '%s\n' "$@" >"$work/testlog.json"
    got_line=$(python3 "$lints/../lib/summarise.py" "$work/testlog.json" | tail -n 1)
    python3 "$lints/../lib/summarise.py" "$work/testlog.json" >/dev/null
    got_status=$?
    if [ "$got_line" != "$line" ] || [ $got_status -ne "$status" ]; then
        echo "summarise.py: '$got_line' and $got_status, should be '$line' and $status"
        failures=1
    fi
}

cases='[       OK ] one\n[  SKIPPED ] two\n[       OK ] three\n'
expect_summary 1 "0 passed, 1 failed, 0 skipped"
expect_summary 0 "1 passed, 0 failed, 0 skipped" '{"name": "a", "result": "OK", "stdout": ""}'
expect_summary 0 "0 passed, 0 failed, 1 skipped" '{"name": "a", "result": "SKIP", "stdout": "skip: no luck"}'
expect_summary 0 "2 passed, 0 failed, 1 skipped" "{\"name\": \"a\", \"result\": \"OK\", \"stdout\": \"$cases\"}"
expect_summary 1 "2 passed, 1 failed, 1 skipped" "{\"name\": \"a\", \"result\": \"FAIL\", \"stdout\": \"$cases\"}"
expect_summary 1 "1 passed, 1 failed, 0 skipped" '{"name": "a", "result": "OK", "stdout": ""}' \
    '{"name": "b", "result": "TIMEOUT", "stdout": ""}'

# What is shown of a test that failed: expect_shown WHAT OUTPUT LINES|- SHOWN NOT-SHOWN (both patterns of grep)
expect_shown() {
    printf '%b' "$2" | python3 -c 'import json, sys
print(json.dumps({"name": "a", "result": "FAIL", "stdout": sys.stdin.read()}))' >"$work/testlog.json"
    python3 "$lints/../lib/summarise.py" "$work/testlog.json" >"$work/output"
    if { [ "$3" != - ] && [ "$(wc -l <"$work/output")" -ne "$3" ]; } || ! grep -q -- "$4" "$work/output" ||
        grep -q -- "$5" "$work/output"; then
        echo "summarise.py: $1: should show $3 lines with '$4', without '$5'"
        cat "$work/output"
        failures=1
    fi
}

many() { # LINES
    seq -f 'line %g.' "$1"
}

one="[ RUN      ] one\nfine\n[       OK ] one\n"
two="[ RUN      ] two\nwhy\n[  ERROR   ] --- 1 != 2\n[  FAILED  ] two\n"
six="[ RUN      ] six\nAssertionError: no\n  at a.py:7\n[   FAILED ] six\n"
expect_shown "no case" "$(many 100)" 42 '^    line 61\.' 'line 60\.'
expect_shown "a case of cmocka, and what comes after it" "$one$two$one$(many 100)" 6 '^    \[  ERROR   \]' 'fine\|line'
expect_shown "a case of a script" "$one$six$one" 6 '^    AssertionError: no$' fine
expect_shown "two cases" "$two$one$six" 10 '^    why$' fine
expect_shown "a case whose result is not at the start of a line" "${one/fine\\n/fine}$two" 6 why fine
expect_shown "a case that cannot be set up" "${one}[ RUN      ] two\nno\n[  ERROR   ] two\n[  PASSED  ]" 5 '^    no$' fine
expect_shown "a case that does not end" "${one}[ RUN      ] two\nit stops" 5 'did not end' fine
expect_shown "a case before one that does not end" "${six}[ RUN      ] two\nit stops" 9 '^    AssertionError: no$' fine
six="[ RUN      ] six\n$(many 50)\nAssertionError: no\n$(many 60)\n  at a.py:7\n[   FAILED ] six\n"
expect_shown "a case with its reason in the middle" "$one$six" 62 '^    AssertionError: no$' 'fine\|line 2[0-4]'
expect_shown "its first and last lines" "$one$six" 62 '^    line 60\.$' fine
expect_shown "that lines are missing" "$one$six" 62 '(55 lines are not shown)' fine
expect_shown "thirty cases" "$(for _ in {1..30}; do echo "$two$one"; done)" 62 '^    why$' fine
expect_shown "a line of a megabyte" "$(printf '%01000000d' 0)" 3 ' \.\.\. 0' '0\{501\}'
exit $failures
