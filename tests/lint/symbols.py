#!/usr/bin/env python3
"""The installed libraries have the functions that their headers declare, and nothing else.

    symbols.py COMPILER... -- HEADER SHARED STATIC [HEADER SHARED STATIC...]

What a header declares is what the compiler makes of it, not what the version script was made from.
"""
import os
import re
import subprocess
import sys


def run(*command):
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout


def declared(compiler, folders, header):
    """The functions of this header alone: the compiler says which lines are its own."""
    flags = run("pkg-config", "--cflags", "glib-2.0").split() + ["-I" + folder for folder in folders]
    lines, ours = [], False
    for line in run(*compiler, *flags, "-x", "c", "-E", header).splitlines():
        if mark := re.match(r'# \d+ "(.*?)"', line):
            ours = mark[1] == header
        elif ours:
            lines.append(line)
    text, depth, flat = " ".join(lines), 0, []
    for character in text:  # what is in braces or parentheses declares nothing
        depth -= character in "})"
        if depth == 0:
            flat.append(character)
        depth += character in "{("
    return {match[1] for match in re.finditer(r"\b([a-z]\w*) *\(\)\s*(?:__attribute__ *\(\)\s*)*;", "".join(flat))}


def defined(*nm):
    """Of a library, the symbols that others see; without version nodes and names of files."""
    symbols = set()
    for line in run("nm", "--defined-only", *nm).splitlines():
        fields = line.split()
        if len(fields) == 3 and fields[1] != "A":
            symbols.add(fields[2].split("@")[0])
    return symbols


def compare(header, expected, library, found):
    for name in sorted(expected - found):
        print(f"{os.path.basename(library)} lacks {name}, which {os.path.basename(header)} declares")
    for name in sorted(found - expected):
        print(f"{os.path.basename(library)} has {name}, which {os.path.basename(header)} does not declare")
    return expected != found


def main():
    arguments = sys.argv[1:]
    end = arguments.index("--")
    compiler, libraries = arguments[:end], list(zip(*[iter(arguments[end + 1:])] * 3))
    folders = [os.path.dirname(header) for header, _, _ in libraries]
    bad = False
    for header, shared, static in libraries:
        expected = declared(compiler, folders, header)
        if not expected:
            sys.exit(f"{header} declares nothing?")
        bad |= compare(header, expected, shared, defined("-D", shared))
        bad |= compare(header, expected, static, defined("-g", static))
        soname = re.search(r"SONAME.*\[(.*)\]", run("readelf", "-d", shared))
        name = os.path.basename(header).removesuffix(".h") + ".so.0"
        if not soname or soname[1] != name:
            print(f"{shared} does not call itself {name}")
            bad = True
        print(f"{os.path.basename(header)}: {len(expected)} functions")
    sys.exit(bad)


main()
