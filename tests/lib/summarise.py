"""Read meson's testlog.json and say what happened: failures with their output, skips with their reason, one line.

A cmocka program is counted by its cases, any other test as one. Exit status 1 when something failed.
"""
import json
import re
import sys

CASE = re.compile(r"^\[\s+(OK|FAILED|SKIPPED)\s+\] (\w+)\s*$", re.MULTILINE)
FAILED_LINES_SHOWN = 40


def reason(text, name):
    """What a skipped test said last, which is why it skipped."""
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    return lines[-1] if lines else f"{name} does not say why"


def skipped_case(text, case):
    """A case says why in the lines between its start and its end."""
    found = re.search(r"^\[ RUN\s+\] %s\n(.*?)^\[\s+SKIPPED" % re.escape(case), text, re.MULTILINE | re.DOTALL)
    lines = [line.strip() for line in (found.group(1) if found else "").splitlines()]
    lines = [line for line in lines if line and not line.startswith("[")]
    return lines[-1] if lines else "see its source"


def summarise(entries):
    passed = failed = skipped = 0
    for entry in entries:
        name, result = entry["name"], entry["result"]
        text = (entry.get("stdout") or "") + (entry.get("stderr") or "")
        cases = {}
        for outcome, case in CASE.findall(text):
            cases[case] = outcome
        n_ok = sum(outcome == "OK" for outcome in cases.values())
        if result == "SKIP":
            skipped += 1
            print(f"skipped: {name}: {reason(text, name)}")
            continue
        for case, outcome in cases.items():
            if outcome == "SKIPPED":
                skipped += 1
                print(f"skipped: {name}: {case}: {skipped_case(text, case)}")
        if result in ("OK", "EXPECTEDFAIL"):
            passed += n_ok if cases else 1
        else:
            passed += n_ok
            failed += max(1, sum(outcome == "FAILED" for outcome in cases.values()))
            print(f"failed: {name} ({result.lower()})")
            for line in text.splitlines()[-FAILED_LINES_SHOWN:]:
                print(f"    {line}")
    return passed, failed, skipped


def main():
    with open(sys.argv[1], encoding="utf-8", errors="replace") as log:
        entries = [json.loads(line) for line in log if line.strip()]
    passed, failed, skipped = summarise(entries)
    if passed + failed + skipped == 0:
        print("failed: no test ran")
        failed = 1
    print(f"{passed} passed, {failed} failed, {skipped} skipped")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
