#!/bin/bash
# What is installed is enough to build a VMM with: the headers alone are C and C++, the example of docs/embedding.md
# compiles by what pkg-config says, with the shared libraries and with the static ones, and saves its guest.
#
#     install.sh BUILD-DIR ROOT
set -u
build=${1:?usage: install.sh BUILD-DIR ROOT}
root=$(realpath "${2:?usage: install.sh BUILD-DIR ROOT}")
work=$(mktemp -d) || exit 1
vmm=
trap '[ -z "$vmm" ] || kill "$vmm" 2>/dev/null; rm -rf "$work"' EXIT
strict=(-Wall -Wextra -Werror)
bad=0

step() { # NAME COMMAND...
    local name=$1
    shift
    "$@" >"$work/log" 2>&1 && return 0
    echo "$name: $*"
    cat "$work/log"
    bad=1
    return 1
}

# To where it will not stay: what pkg-config tells has to follow.
install() {
    step install meson install -C "$build" --no-rebuild --destdir "$work/root" || exit 1
    local file
    while read -r file; do
        sed -i "s|^prefix=|prefix=$work/root|" "$file"
    done < <(find "$work/root" -name '*.pc')
    libraries=$(dirname "$(find "$work/root" -name libsnap.a)")
    export PKG_CONFIG_PATH=$libraries/pkgconfig
}

check_headers() {
    local header flags
    read -ra flags < <(pkg-config --cflags libsnap-qmp)
    for header in libsnap.h libsnap-qmp.h; do
        echo "#include <$header>" >"$work/alone.c"
        step "$header is C11" cc -std=c11 "${strict[@]}" "${flags[@]}" -fsyntax-only "$work/alone.c"
        command -v c++ >/dev/null || continue
        step "$header is C++" c++ -std=c++11 -x c++ "${strict[@]}" "${flags[@]}" -fsyntax-only "$work/alone.c"
    done
    # Twice, and called from C++: what is declared is C there.
    printf '#include <%s>\n' libsnap-qmp.h libsnap.h libsnap-qmp.h >"$work/call.cc"
    echo 'int main() { snap_qmp_free(nullptr); snap_save_free(nullptr); return snap_error_text(0) == nullptr; }' \
        >>"$work/call.cc"
    command -v c++ >/dev/null || return
    read -ra flags < <(pkg-config --cflags --libs libsnap-qmp)
    step "call from C++" c++ -std=c++11 "${strict[@]}" "$work/call.cc" "${flags[@]}" -o "$work/call" &&
        LD_LIBRARY_PATH=$libraries step "call from C++" "$work/call"
}

# A program has names of its own, which are also in the libraries.
build_example() {
    local flags
    printf 'void %s(void);\nvoid %s(void) {}\n' qmp_stop qmp_stop snap_uffd_open snap_uffd_open >"$work/names.c"
    read -ra flags < <(pkg-config --cflags --libs libsnap-qmp)
    step "example, shared" cc "${strict[@]}" "$root/docs/examples/embed.c" "$work/names.c" "${flags[@]}" \
        -o "$work/embed-shared"
    mkdir "$work/static"
    cp "$libraries"/*.a "$work/static"
    read -ra flags < <(pkg-config --cflags --libs --static libsnap-qmp)
    step "example, static" cc "${strict[@]}" -L"$work/static" "$root/docs/examples/embed.c" "$work/names.c" \
        "${flags[@]//"$libraries"/"$work/static"}" -o "$work/embed-static"
    ldd "$work/embed-static" | grep libsnap && bad=1
}

# From the socket to an image that verifies.
talk() { # SOCKET IMAGE
    python3 - "$1" "$2" <<'PYTHON'
import json, socket, sys
peer = socket.socket(socket.AF_UNIX)
peer.connect(sys.argv[1])
lines = peer.makefile("rw")

def ask(command, **arguments):
    lines.write(json.dumps({"execute": command, "arguments": arguments}))
    lines.flush()
    while "event" in (answer := json.loads(lines.readline())):
        pass
    return answer["return"]

print(lines.readline())
ask("qmp_capabilities")
print(ask("query-name"), ask("stop"), ask("query-status"), ask("cont"))
ask("snapshot-save", **{"job-id": "j", "path": sys.argv[2]})
while json.loads(lines.readline()).get("data", {}).get("status") != "concluded":
    pass
job, = ask("query-jobs")
print(job)
assert "error" not in job
ask("quit")
PYTHON
}

run_example() { # shared|static
    LD_LIBRARY_PATH=$libraries "$work/embed-$1" "$work/$1.sock" &
    vmm=$!
    for _ in $(seq 100); do
        [ -S "$work/$1.sock" ] && break
        sleep 0.1
    done
    step "$1: QMP" talk "$work/$1.sock" "$work/$1-image" || return
    step "$1: quit" wait "$vmm"
    vmm=
    step "$1: verify" "$(pkg-config --variable=prefix libsnap)/bin/vmsnap" \
        verify "$work/$1-image"
    [ ! -e "$work/$1.sock" ] || { echo "$1: its socket is still there"; bad=1; }
}

install
check_headers
build_example
[ $bad -eq 0 ] || exit 1
if [ "$(id -u)" != 0 ] && [ "$(cat /proc/sys/vm/unprivileged_userfaultfd)" != 1 ]; then
    echo "skip: userfaultfd needs root here, so the example was only built"
    exit 77
fi
run_example shared
run_example static
exit $bad
