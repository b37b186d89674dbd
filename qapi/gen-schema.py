#!/usr/bin/env python3
"""Make of a schema in QAPI's notation what the QMP server is built from.

    gen-schema.py SCHEMA [--define NAME]... [--prefix PREFIX] [--tables FILE.c] [--handlers FILE.h]
                  [--reference FILE.md] [--depfile FILE]

The tables fill qapi/schema.h. The header declares the handlers, of command a-b_c the function qmp_a_b_c, so that one
that is missing or left over fails the build. Both have only what is there where just NAMEs are defined; the reference
has everything. A schema that is wrong gives one line "FILE:LINE: what" and exit status 1, and writes nothing.
"""
import argparse
import os
import sys

sys.dont_write_bytecode = True
from gen import check, notation, reference, schema, tables  # noqa: E402


def arguments():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("schema")
    parser.add_argument("--define", action="append", default=[])
    parser.add_argument("--prefix", default="")
    for option in ("--tables", "--handlers", "--reference", "--depfile"):
        parser.add_argument(option)
    return parser.parse_args()


def outputs(options):
    """Paths and what is written there."""
    whole, paths = schema.load(options.schema)
    check.check(whole)
    here = whole.reduced(set(options.define))
    check.check_types(here)
    yield options.tables, lambda: tables.tables(here, options.prefix, os.path.basename(options.handlers or ""))
    yield options.handlers, lambda: tables.handlers(here, options.prefix)
    yield options.reference, lambda: reference.reference(whole)
    yield options.depfile, lambda: f"{options.tables or options.reference}: {' '.join(paths)}\n"


def main():
    options = arguments()
    try:
        written = [(path, make()) for path, make in outputs(options) if path]
    except (notation.SchemaError, OSError) as error:
        print(error, file=sys.stderr)
        return 1
    for path, text in written:
        with open(path, "w", encoding="utf-8") as file:
            file.write(text)
    return 0


if __name__ == "__main__":
    sys.exit(main())
