"""Read meson's testlog.json and say what happened: failures with their output, skips with their reason, one line.

A cmocka program is counted by its cases, any other test as one. Of a test that failed its failed cases are shown, from
"[ RUN" to "[  FAILED", and those that never ended; its last lines, where it has none of these. Exit status 1 when
something failed.
"""
import json
import re
import sys

CASE = re.compile(r"^\[\s+(OK|FAILED|SKIPPED)\s+\] (\w+)\s*$", re.MULTILINE)
RUN = re.compile(r"^\[ RUN\s+\] (\w+)\s*$")
RESULT = re.compile(r"\[\s+(OK|FAILED|SKIPPED|ERROR)\s+\] (\w+)\s*$")  # perhaps behind what the case left unended
SAYS_WHY = re.compile(r"\[\s+(?:RUN|FAILED|ERROR|LINE)\s+\]|[\w.]+(?:Error|Refused|Closed|Expired): |  at \w|.*\bWRONG\b")
LINES_SHOWN = 60       # of a test that failed
TAIL_SHOWN = 40        # of one without cases
CASE_LINES_MIN = 6     # of each case, when many failed
CHARACTERS_SHOWN = 1000


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


def failed_cases(lines):
    """The lines of each case that did not end well, in the order in which they ran."""
    found, case = [], None
    for line in lines:
        run, result = RUN.match(line), RESULT.search(line)
        if run:
            if case:
                found.append(case + ["(it did not end)"])
            case, name = [line], run.group(1)
        elif case:
            case.append(line)
            if result and result.group(2) == name:
                if result.group(1) in ("FAILED", "ERROR"):
                    found.append(case)
                case = None
    return found + ([case + ["(it did not end)"]] if case else [])


def cut(lines, limit):
    """At most LIMIT of them: the first, the last, and of those between them the first that say why."""
    if len(lines) <= limit:
        return lines
    first = limit // 3
    why = [line for line in lines[first:first - limit] if SAYS_WHY.match(line)][:limit // 4]
    last = limit - first - len(why) - 1
    note = f"({len(lines) - limit + 1} lines are not shown)"
    return [*lines[:first], note, *why, *lines[-last:]]


def shorten(line):
    if len(line) <= CHARACTERS_SHOWN:
        return line
    return f"{line[:CHARACTERS_SHOWN // 2]} ... {line[-CHARACTERS_SHOWN // 2:]}"


def what_failed(text):
    """The lines to show of a test that failed."""
    lines = text.splitlines()
    found = failed_cases(lines)
    if not found:
        return lines[-TAIL_SHOWN:]
    if sum(map(len, found)) > LINES_SHOWN:
        found = [cut(case, max(LINES_SHOWN // len(found), CASE_LINES_MIN)) for case in found]
    return cut([line for case in found for line in case], LINES_SHOWN)


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
            for line in what_failed(text):
                print(f"    {shorten(line)}")
    return passed, failed, skipped


def main():
    sys.stdout.reconfigure(errors="backslashreplace")
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
