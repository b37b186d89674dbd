#!/usr/bin/env python3
"""qapi/gen-schema.py: what it complains about, where it says that is, and the page it makes.

    gen-schema.py GEN-SCHEMA [WORD...]

That its tables are right is the business of tests/unit/test-schema.c.
"""
import os
import subprocess
import sys

sys.path.insert(0, os.path.join(os.path.dirname(os.path.abspath(__file__)), "..", "lib"))
import cases  # noqa: E402

# A schema, and "LINE: what is said about it". Complaints about descriptions come after all others, so most of these
# need none.
NOTATION = [
    ("'x'", "1: an object must begin here"),
    ("{ 'command': 'a' } }", "1: an object must begin here"),
    ("\n{ 'command': \"a\" }", "2: stray '\"'"),
    ("{ 'command': 'a }", "1: a string that does not end in its line"),
    ("{ 'command': 12 }", "1: stray '1'"),
    ("{ 'command': null }", "1: stray 'n'"),
    ("{ 'command' 'a' }", "1: ':' is missing after 'command'"),
    ("{ command: 'a' }", "1: stray 'c'"),
    ("{ true: 'a' }", "1: a key must stand here, in apostrophes"),
    ("{ 'command': 'a'\n  'boxed': true }", "2: ',' or '}' is missing"),
    ("{ 'command': 'a', }", "1: a key must follow ','"),
    ("{ 'enum': 'A', 'data': [ 'a',\n] }", "2: a value must follow ','"),
    ("{ 'enum': 'A', 'data': [ 'a' 'b' ] }", "1: ',' or ']' is missing"),
    ("{ 'enum': 'A', 'data': }", "1: a value must stand before '}'"),
    ("{ 'enum': 'A', 'data': ", "1: a value must stand before 'the end'"),
    ("{ 'command': 'a',\n  'command': 'b' }", "2: the key 'command' stands here twice"),
    ("# fine\n\n##\n# @a:\n", "3: the documentation block is not closed by \"##\""),
    ("##\n# @a:\n{ 'command': 'a' }\n##", "3: a line of a documentation block must begin with \"# \""),
    ("##\n#@a:\n##", "2: a line of a documentation block must begin with \"# \""),
    ("\n{ 'include': 'nope.json' }", "2: there is no file nope.json"),
    ("{ 'include': 'x', 'if': 'y' }", "1: 'include' takes one file name and nothing else"),
    ("{ 'pragma': { 'doc-required': false } }", "1: the only pragma is 'doc-required': true"),
]
DEFINITIONS = [
    ("{ 'data': {} }", "1: an object must have one of alternate, command, enum, event, struct, union, or include"),
    ("{ 'command': 'a', 'event': 'A' }",
     "1: an object must have one of alternate, command, enum, event, struct, union, or include"),
    ("{ 'command': [] }", "1: 'command' takes a name"),
    ("{ 'command': 'a',\n  'colour': 'red' }", "2: unknown key 'colour' in command 'a'"),
    ("{ 'event': 'A', 'returns': 'str' }", "1: unknown key 'returns' in event 'A'"),
    ("{ 'struct': 'A' }", "1: 'data' is missing in struct 'A'"),
    ("{ 'union': 'A', 'base': {}, 'data': {} }", "1: 'discriminator' is missing in union 'A'"),
    ("{ 'struct': 'A', 'data': 'B' }", "1: 'data' takes an object"),
    ("{ 'struct': 'A', 'data': {\n 'a': 1 } }", "2: stray '1'"),
    ("{ 'struct': 'A', 'data': {\n 'a': true } }", "2: a type must be a name, or ['NAME'] for an array of it"),
    ("{ 'struct': 'A', 'data': {\n 'a': [ 'int', 'str' ] } }",
     "2: a type must be a name, or ['NAME'] for an array of it"),
    ("{ 'struct': 'A', 'data': {\n 'a': { 'if': 'X' } } }", "2: 'type' is missing"),
    ("{ 'struct': 'A', 'data': {\n 'a': { 'type': 'int',\n 'default': 'x' } } }", "2: unknown key 'default'"),
    ("{ 'enum': 'A', 'data': {} }", "1: 'data' takes a list"),
    ("{ 'enum': 'A', 'data': [ [] ] }", "1: 'data' takes names"),
    ("{ 'command': 'a', 'features': 'x' }", "1: 'features' takes a list"),
    ("{ 'command': 'a', 'features': [ { 'name': 'x', 'type': 'y' } ] }", "1: unknown key 'type'"),
    ("{ 'command': 'a', 'if': {} }",
     "1: 'if' takes a name, or an object with one of 'all': [...], 'any': [...], 'not': ..."),
    ("{ 'command': 'a', 'if': { 'all': [] } }",
     "1: 'if' takes a name, or an object with one of 'all': [...], 'any': [...], 'not': ..."),
    ("{ 'command': 'a', 'if': { 'not': { 'some': [ 'X' ] } } }",
     "1: 'if' takes a name, or an object with one of 'all': [...], 'any': [...], 'not': ..."),
    ("{ 'command': 'a',\n 'allow-oob': 'yes' }", "2: 'allow-oob' takes true or false"),
    ("{ 'command': 'a' }\n{ 'command': 'a' }", "2: 'a' is defined already: FILE:1"),
    ("{ 'struct': 'int', 'data': {} }", "1: 'int' is defined already: as a built-in type"),
]
NAMES = [
    ("{ 'command': 'A' }", "1: 'A' is no command name: it must match [a-z][a-z0-9_-]*"),
    ("{ 'event': 'a' }", "1: 'a' is no event name: it must match [A-Z][A-Z0-9_]*"),
    ("{ 'enum': 'colour', 'data': [] }", "1: 'colour' is no type name: it must match [A-Z][A-Za-z0-9]*"),
    ("{ 'struct': 'A', 'data': {\n '*A': 'int' } }",
     "2: 'A' is no member name: it must match [a-z][a-z0-9_-]*"),
    ("{ 'struct': 'A', 'data': { '*a': 'int',\n 'a': 'int' } }", "2: the member 'a' stands here twice"),
    ("{ 'enum': 'A', 'data': [ 'a', 'a' ] }", "1: the value 'a' stands here twice"),
    ("{ 'command': 'a', 'features': [ 'x y' ] }",
     "1: 'x y' is no feature name: it must match [a-z][a-z0-9-]*"),
    ("{ 'command': 'a-b' }\n{ 'command': 'a_b' }", "2: 'a_b' and 'a-b' would have one handler"),
]
TYPES = [
    ("{ 'command': 'a', 'data': { 'x': 'Nope' } }", "1: there is no type 'Nope'"),
    ("{ 'command': 'a', 'returns': [ 'Nope' ] }", "1: there is no type 'Nope'"),
    ("{ 'command': 'a' }\n{ 'command': 'b', 'returns': 'a' }", "2: there is no type 'a'"),
    ("{ 'command': 'a', 'data': 'int' }", "1: 'int' is of kind builtin; here must be one of struct, union"),
    ("{ 'command': 'a', 'boxed': true }", "1: 'boxed' needs the name of a type as 'data'"),
    ("{ 'struct': 'A', 'base': 'E', 'data': {} }\n{ 'enum': 'E', 'data': [] }",
     "1: 'E' is of kind enum; here must be one of struct"),
    ("{ 'struct': 'A', 'base': 'B', 'data': {} }\n{ 'struct': 'B', 'base': 'A', 'data': {} }",
     "2: 'A' is its own base"),
    ("{ 'struct': 'A', 'base': 'B', 'data': { 'x': 'int' } }\n{ 'struct': 'B', 'data': { 'x': 'int' } }",
     "1: the member 'x' is also a member of its base"),
    ("{ 'alternate': 'A', 'data': { 'a': 'str',\n 'b': 'E' } }\n{ 'enum': 'E', 'data': [] }",
     "2: the alternative 'b' cannot be told from the others by its JSON type, string"),
    ("{ 'alternate': 'A', 'data': { 'a': 'int8',\n 'b': 'number' } }",
     "2: the alternative 'b' cannot be told from the others by its JSON type, number"),
    ("{ 'alternate': 'A', 'data': { 'a': 'any' } }",
     "1: the alternative 'a' cannot be told from the others by its JSON type, value"),
]
UNION = "{ 'enum': 'E', 'data': [ 'one', 'two' ] }\n{ 'struct': 'S', 'data': { 'x': 'int' } }\n"
TAG = "3: the discriminator 'e' must be a member of the base, of an enum type and always there"
UNIONS = [
    ("{ 'union': 'U', 'base': { 'f': 'E' }, 'discriminator': 'e', 'data': { 'one': 'S' } }", TAG),
    ("{ 'union': 'U', 'base': { '*e': 'E' }, 'discriminator': 'e', 'data': { 'one': 'S' } }", TAG),
    ("{ 'union': 'U', 'base': { 'e': 'str' }, 'discriminator': 'e', 'data': { 'one': 'S' } }", TAG),
    ("{ 'union': 'U', 'base': { 'e': ['E'] }, 'discriminator': 'e', 'data': { 'one': 'S' } }", TAG),
    ("{ 'union': 'U', 'base': { 'e': { 'type': 'E', 'if': 'X' } }, 'discriminator': 'e', 'data': {} }", TAG),
    ("{ 'union': 'U', 'base': { 'e': 'E' }, 'discriminator': 'e', 'data': {\n 'three': 'S' } }",
     "4: 'three' is no value of E"),
    ("{ 'union': 'U', 'base': { 'e': 'E' }, 'discriminator': 'e', 'data': {\n 'one': 'E' } }",
     "4: 'E' is of kind enum; here must be one of struct"),
    ("{ 'union': 'U', 'base': { 'e': 'E', 'x': 'int' }, 'discriminator': 'e', 'data': {\n 'one': 'S' } }",
     "4: the member 'x' is also a member of its base"),
    ("{ 'union': 'U', 'base': { 'e': 'E' }, 'discriminator': 'e', 'data': { 'one': 'S' } }\n"
     "{ 'command': 'a', 'data': 'U' }", "4: a union as 'data' needs 'boxed': true"),
]
HEADING = "##\n# = Things\n##\n"  # three lines
DOCS = [
    (HEADING + "{ 'command': 'a' }", "4: 'a' is not described"),
    ("##\n# @a:\n#\n# It.\n##\n{ 'command': 'a' }",
     "6: 'a' stands under no heading (\"# = TITLE\" in a block of its own)"),
    (HEADING + "##\n# @b:\n#\n# It.\n##\n{ 'command': 'a' }", "4: this describes 'b', and 'a' follows"),
    (HEADING + "##\n# @a:\n#\n# It.\n##\n##\n# @b:\n#\n# It.\n##\n{ 'command': 'b' }",
     "4: no definition follows the description of 'a'"),
    (HEADING + "##\n# @a:\n#\n# It.\n##", "4: no definition follows the description of 'a'"),
    (HEADING + "##\n# @a:\n##\n{ 'command': 'a' }", "4: what 'a' is must be said first"),
    (HEADING + "##\n# @a:\n#\n# @x: it\n##\n{ 'command': 'a', 'data': { 'x': 'int' } }",
     "4: what 'a' is must be said first"),
    (HEADING + "##\n# @a:\n#\n# It.\n##\n{ 'command': 'a', 'data': {\n  'x': 'int' } }",
     "10: the argument 'x' of 'a' is not described"),
    (HEADING + "##\n# @a:\n#\n# It.\n#\n# @x:\n##\n{ 'command': 'a', 'data': {\n  'x': 'int' } }",
     "12: the argument 'x' of 'a' is not described"),
    (HEADING + "##\n# @a:\n#\n# It.\n#\n# @y: what\n##\n{ 'command': 'a' }",
     "9: 'a' has no argument 'y' to be described here"),
    (HEADING + "##\n# @a:\n#\n# It.\n#\n# @y: what\n# @y: what\n##\n{ 'command': 'a' }", "10: @y is described twice"),
    (HEADING + "##\n# @A:\n#\n# It.\n##\n{ 'struct': 'A', 'data': { 'x': 'int' } }",
     "9: the member 'x' of 'A' is not described"),
    (HEADING + "##\n# @A:\n#\n# It.\n##\n{ 'enum': 'A', 'data': [ 'x' ] }",
     "9: the value 'x' of 'A' is not described"),
    (HEADING + "##\n# @A:\n#\n# It.\n##\n{ 'alternate': 'A', 'data': { 'x': 'int' } }",
     "9: the alternative 'x' of 'A' is not described"),
    (HEADING + "##\n# @A:\n#\n# It.\n##\n{ 'event': 'A', 'data': { 'x': 'int' } }",
     "9: the member 'x' of 'A' is not described"),
    (HEADING + "##\n# @A:\n#\n# It.\n#\n# @y: its base's\n##\n{ 'struct': 'A', 'base': 'B', 'data': {} }\n"
     "{ 'struct': 'B', 'data': { 'y': 'int' } }", "9: 'A' has no member 'y' to be described here"),
    (HEADING + "##\n# @a:\n#\n# It.\n##\n{ 'command': 'a', 'features': [ 'x' ] }",
     "9: the feature 'x' of 'a' is not described"),
    (HEADING + "##\n# @a:\n#\n# It.\n#\n# Features:\n# @x: what\n##\n{ 'command': 'a' }",
     "10: 'a' has no feature 'x' to be described here"),
    (HEADING + "##\n# @A:\n#\n# It.\n#\n# @x: what\n##\n"
     "{ 'struct': 'A', 'data': { 'x': { 'type': 'int', 'features': [ 'y' ] } } }",
     "11: the feature 'y' of 'A' is not described"),
    (HEADING + "##\n# @a:\n#\n# It.\n##\n{ 'command': 'a', 'returns': 'int' }", "9: what 'a' returns is not described"),
    (HEADING + "##\n# @a:\n#\n# It.\n#\n# Returns: it\n##\n{ 'command': 'a' }",
     "9: 'a' returns nothing to be described here"),
    (HEADING + "##\n# @A:\n#\n# It.\n#\n# Errors: none\n##\n{ 'event': 'A' }", "9: Errors: is for commands"),
    (HEADING + "##\n# @a:\n#\n# It.\n#\n# Errors:\n##\n{ 'command': 'a' }", "9: Errors: is empty"),
    (HEADING + "##\n# @a:\n#\n# It.\n#\n# Since: 1\n# Since: 2\n##\n{ 'command': 'a' }",
     "10: Since: stands here twice"),
    (HEADING + "##\n# @a:\n#\n# It.\n#\n# Features: some\n##\n{ 'command': 'a' }",
     "9: \"Features:\" must stand alone in its line"),
    (HEADING + "##\n# @a:\n#\n# It.\n#\n# @x: what\n# goes on\n##\n{ 'command': 'a', 'data': { 'x': 'int' } }",
     "10: a line that goes on with a description must be indented"),
    ("##\n# Text.\n#\n# = Things\n##", "1: the heading \"= Things\" must stand in the first line of its block"),
]
UNDER_CONDITIONS = [
    (HEADING + "##\n# @a:\n#\n# It.\n#\n# @x: what\n##\n{ 'command': 'a', 'data': { 'x': 'A' } }\n"
     "##\n# @A:\n#\n# It.\n##\n{ 'struct': 'A', 'data': {}, 'if': 'NOT_DEFINED' }", "11: there is no type 'A'"),
]

SMALL = """##
# Before everything.
##

##
# = Things
#
# What @take is about.
##

##
# @take:
#
# Take * things. With @Thing, not with @nothing: a<b.
#
# And more.
#
# @thing: which; it goes
#     on here
#
#     - or | there
# @much: how much
#
# Features:
# @odd: it is
#
# Returns: what is left
#
# Errors: GenericError, there is none
#
# Since: 1.0
#
# Example:
#
# -> { "execute": "take" }
#      indented
##
{ 'command': 'take', 'allow-oob': true,
  'data': { 'thing': 'Thing', '*much': { 'type': ['uint8'], 'if': { 'any': [ 'A', { 'not': 'B' } ] } } },
  'returns': [ 'Thing' ], 'features': [ 'odd' ], 'if': 'A' }

##
# @Thing:
#
# A thing.
#
# @one: the first
# @two: the second
##
{ 'enum': 'Thing', 'data': [ 'one', { 'name': 'two', 'if': 'B' } ] }
"""
SMALL_PAGE = r"""
Before everything.

- [Things](#things)
  - [`take`](#take): Take \* things
- [Events](#events)
- [Types](#types)

## Things

What [`take`](#take) is about.

### take

Take \* things. With [`Thing`](#thing-enum), not with `nothing`: a\<b.

And more.

Only where `A`.

It can be sent out of band.

| argument | type |  |
| --- | --- | --- |
| `thing` | [`Thing`](#thing-enum) | which; it goes on here<br><br>- or \| there |
| `much` | [`uint8`], optional, if `A` or not `B` | how much |

**Features**

- **odd**: it is

**Returns** [[`Thing`](#thing-enum)]: what is left

**Errors**: GenericError, there is none

Since 1.0.

```
-> { "execute": "take" }
     indented
```

## Events

## Types

### Thing (enum)

A thing.

| value |  |
| --- | --- |
| `one` | the first |
| `two`, if `B` | the second |
"""


def generate(folder, text, *options):
    """What is said about a schema, and what is written: name and text of each file."""
    path = f"{folder}/s.json"
    with open(path, "w", encoding="utf-8") as file:
        file.write(text)
    outputs = ["tables", "handlers", "reference", "depfile"]
    paths = [word for name in outputs for word in (f"--{name}", f"{folder}/{name}")]
    result = subprocess.run([sys.argv[1], path, *paths, *options], stderr=subprocess.PIPE, text=True, timeout=60)
    said = result.stderr.strip().replace(path, "FILE")
    assert result.returncode == (1 if said else 0), f"exit status {result.returncode}: {said}"
    written = {}
    for name in outputs:
        if os.path.exists(f"{folder}/{name}"):
            with open(f"{folder}/{name}", encoding="utf-8") as file:
                written[name] = file.read()
            os.unlink(f"{folder}/{name}")
    return said, written


def check(folder, table, before=""):
    bad = []
    for text, complaint in table:
        said, written = generate(folder, before + text)
        if said != f"FILE:{complaint}" or written:
            bad.append(f"{text!r}: {said!r}, should be {complaint!r}; written: {list(written)}")
    assert not bad, "\n".join(bad)


def notation_that_is_wrong_is_refused(folder):
    check(folder, NOTATION)


def definition_that_is_wrong_is_refused(folder):
    check(folder, DEFINITIONS)


def name_that_is_wrong_is_refused(folder):
    check(folder, NAMES)


def type_that_is_wrong_is_refused(folder):
    check(folder, TYPES)


def union_that_is_wrong_is_refused(folder):
    check(folder, UNIONS, UNION)


def description_that_is_wrong_is_refused(folder):
    check(folder, DOCS)


def type_that_a_condition_takes_away_is_missed(folder):
    check(folder, UNDER_CONDITIONS)
    said, _ = generate(folder, UNDER_CONDITIONS[0][0], "--define", "NOT_DEFINED")
    assert not said, said


def complaint_names_the_included_file(folder):
    with open(f"{folder}/part.json", "w", encoding="utf-8") as file:
        file.write("\n\n{ 'command': }")
    said, _ = generate(folder, "{ 'include': 'part.json' }")
    assert said == f"{folder}/part.json:3: a value must stand before '}}'", said


def include_twice_is_read_once(folder):
    with open(f"{folder}/part.json", "w", encoding="utf-8") as file:
        file.write("##\n# @A:\n#\n# It.\n##\n{ 'struct': 'A', 'data': {} }\n{ 'include': 's.json' }")
    said, written = generate(folder, "{ 'include': 'part.json' }\n{ 'include': 'part.json' }")
    assert not said, said
    assert written["depfile"] == f"{folder}/tables: {folder}/s.json {folder}/part.json\n", written["depfile"]


def reference_of_a_small_schema_is_this_page(folder):
    said, written = generate(folder, SMALL)
    assert not said, said
    page = written["reference"].split("`int64`, `size` is `uint64`.\n", 1)[1]
    assert page == SMALL_PAGE, page


def tables_have_what_conditions_leave(folder):
    for defined, there in (("A", True), ("B", False)):
        said, written = generate(folder, SMALL, "--define", defined, "--prefix", "small_")
        assert not said, said
        assert ("small_qmp_take" in written["handlers"]) == there, written["handlers"]
        assert ('"take"' in written["tables"]) == there, written["tables"]
        assert ('"two"' in written["tables"]) == (there and defined == "B"), written["tables"]


if __name__ == "__main__":
    cases.run(globals(), sys.argv[2:])
