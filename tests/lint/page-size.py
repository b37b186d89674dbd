#!/usr/bin/env python3
"""The page size is a property of a region, never a constant. Fails on one in libsnap/.

    page-size.py ROOT

Looked at is code, not comments and not strings. uapi.h is left out: its 1 << 12 is the kernel's feature bit 12.
"""
import pathlib
import re
import sys

COMMENT_OR_STRING = re.compile(r'/\*.*?\*/|//[^\n]*|"(?:\\.|[^"\\\n])*"', re.DOTALL)
PAGE_SIZE = re.compile(
    r"\b(?:4096|4095|0x1000|0xfff|2097152|0x200000)[uUlL]*\b"
    r"|(?:<<|>>)\s*(?:12|21)\b"
    r"|\b(?:PAGE_SIZE|PAGE_SHIFT|PAGE_MASK|HPAGE_SIZE)\b"
)


def main(root):
    bad = False
    for path in sorted((pathlib.Path(root) / "libsnap").glob("*.[ch]")):
        if path.name == "uapi.h":
            continue
        code = COMMENT_OR_STRING.sub(lambda found: "\n" * found.group().count("\n"), path.read_text())
        for number, line in enumerate(code.splitlines(), 1):
            if PAGE_SIZE.search(line):
                print(f"libsnap/{path.name}:{number}: {line.strip()}")
                bad = True
    if bad:
        print("a page size in libsnap/: take it from the region, or from sysconf() where there is none")
    return 1 if bad else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))
