#!/bin/bash
# clang-tidy and clang-format over everything that is compiled.
#
#     tidy.sh BUILD-DIR       a build directory that was set up with clang; run from the root of the tree
set -u
build=${1:?usage: tidy.sh BUILD-DIR}
for program in clang-tidy clang-format; do
    command -v $program >/dev/null || { echo "skip: $program is missing"; exit 77; }
done
bad=0
mapfile -t sources < <(python3 - "$build" <<'PYTHON'
import json, os, sys
build = sys.argv[1]
seen = sorted({os.path.relpath(os.path.join(entry["directory"], entry["file"]))
               for entry in json.load(open(os.path.join(build, "compile_commands.json")))})
print("\n".join(path for path in seen if path.endswith(".c") and not path.startswith("build")))
PYTHON
)
mapfile -t headers < <(find libsnap vmm-glue qapi tools tests docs -name '*.h')
printf '%s\n' "${sources[@]}" | xargs -P 2 -n 4 clang-tidy -p "$build" --quiet 2>/dev/null || bad=1
clang-format --dry-run -Werror "${sources[@]}" "${headers[@]}" || bad=1
exit $bad
