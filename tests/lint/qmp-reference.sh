#!/bin/bash
# docs/qmp-reference.md says what the schema says.
#
#     qmp-reference.sh ROOT
set -u
root=${1:?usage: qmp-reference.sh ROOT}
generator=$(dirname "$0")/../../qapi/gen-schema.py
page=$(mktemp) || exit 1
trap 'rm -f "$page"' EXIT
"$generator" "$root/qapi/qapi-schema.json" --reference "$page" 2>&1 || exit 1
diff -u --label docs/qmp-reference.md "$root/docs/qmp-reference.md" --label "what the schema says" "$page" && exit 0
echo "mend it by: qapi/gen-schema.py qapi/qapi-schema.json --reference docs/qmp-reference.md"
exit 1
