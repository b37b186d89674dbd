#!/usr/bin/env python3
"""What a library offers: the functions that its header declares.

    exported.py --map NODE HEADER      a version script for the linker: these, and nothing else
    exported.py --list HEADER          one a line, as objcopy takes them
"""
import re
import sys


def functions(path):
    with open(path, encoding="utf-8") as header:
        text = header.read()
    text = re.sub(r"/\*.*?\*/", " ", text, flags=re.S)
    text = re.sub(r"^\s*#.*(?:\\\n.*)*", " ", text, flags=re.M)
    return sorted(set(re.findall(r"\b(snap_\w+)\s*\(", text)))


def main():
    arguments = sys.argv[1:]
    if arguments[:1] == ["--list"]:
        print("\n".join(functions(arguments[1])))
    elif arguments[:1] == ["--map"]:
        names = "".join(f"    {name};\n" for name in functions(arguments[2]))
        print(f"{arguments[1]} {{\nglobal:\n{names}local:\n    *;\n}};")
    else:
        sys.exit(__doc__)


main()
