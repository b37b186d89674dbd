"""QAPI's notation as Python values.

A schema file is a row of objects in a JSON of its own: strings stand in apostrophes and have no escapes, there are no
numbers and no null, and # begins a comment. Between the objects stand documentation blocks, from one line "##" to the
next. read() gives both in the order of the file, included files in their place.

What is wrong raises SchemaError, which says where and what. An object knows the line of each of its keys.
"""
import os
import re

# What may stand between the objects: comments that begin no documentation block.
BETWEEN = re.compile(r"\s*(?:#(?!#[ \t]*\n)[^\n]*(?:\n\s*|$))*")
TOKEN = re.compile(r"""[ \t\r\n]+ | \#[^\n]* | (?P<word>true|false)\b | (?P<mark>[{}\[\]:,])
                       | '(?P<string>[^'\\\n]*)'""", re.VERBOSE)


class SchemaError(Exception):
    """What is wrong with a schema, and where."""

    def __init__(self, where, what):
        super().__init__(f"{where}: {what}")


class Where:
    """A line of a file."""

    def __init__(self, path, line):
        self.path, self.line = path, line

    def __str__(self):
        return f"{self.path}:{self.line}"


class Object(dict):
    """An object; `where` is its first line, `lines` has the Where of each key."""

    def __init__(self, where):
        super().__init__()
        self.where, self.lines = where, {}


class Block:
    """A documentation block: `lines` without their "# "."""

    def __init__(self, where):
        self.where, self.lines = where, []


class Reader:
    """One file, read from front to back."""

    def __init__(self, path):
        self.path, self.position = path, 0
        with open(path, encoding="utf-8") as file:
            self.text = file.read()

    def where(self):
        return Where(self.path, self.text.count("\n", 0, self.position) + 1)

    def fail(self, what):
        raise SchemaError(self.where(), what)

    def token(self):
        """The next one: a str for a mark, a one-tuple for a value, None at the end; and where it is."""
        while self.position < len(self.text):
            found = TOKEN.match(self.text, self.position)
            if not found:
                stray = self.text[self.position]
                self.fail("a string that does not end in its line" if stray == "'" else f"stray {stray!r}")
            where = self.where()
            self.position = found.end()
            if found["mark"]:
                return found["mark"], where
            if found["word"]:
                return (found["word"] == "true",), where
            if found["string"] is not None:
                return (found["string"],), where
        return None, self.where()

    def value(self, token, where):
        if token == "{":
            return self.object(where)
        if token == "[":
            return self.list()
        if isinstance(token, tuple):
            return token[0]
        raise SchemaError(where, f"a value must stand before {token or 'the end'!r}")

    def list(self):
        values = []
        token, where = self.token()
        while token != "]":
            values.append(self.value(token, where))
            token, where = self.token()
            if token == ",":
                token, where = self.token()
                if token == "]":
                    raise SchemaError(where, "a value must follow ','")
            elif token != "]":
                raise SchemaError(where, "',' or ']' is missing")
        return values

    def object(self, where):
        result = Object(where)
        token, where = self.token()
        while token != "}":
            if not isinstance(token, tuple) or not isinstance(token[0], str):
                raise SchemaError(where, "a key must stand here, in apostrophes")
            if token[0] in result:
                raise SchemaError(where, f"the key '{token[0]}' stands here twice")
            colon, colon_where = self.token()
            if colon != ":":
                raise SchemaError(colon_where, f"':' is missing after '{token[0]}'")
            result.lines[token[0]] = where
            result[token[0]] = self.value(*self.token())
            token, where = self.token()
            if token == ",":
                token, where = self.token()
                if token == "}":
                    raise SchemaError(where, "a key must follow ','")
            elif token != "}":
                raise SchemaError(where, "',' or '}' is missing")
        return result

    def line(self):
        """The next one, None at the end."""
        if self.position == len(self.text):
            return None
        end = self.text.find("\n", self.position)
        end = len(self.text) if end < 0 else end
        line = self.text[self.position:end].rstrip()
        self.position = min(end + 1, len(self.text))
        return line

    def block(self):
        """The documentation block that begins here, at "##"."""
        block = Block(self.where())
        self.line()
        while True:
            where = self.where()
            line = self.line()
            if line is None:
                raise SchemaError(block.where, "the documentation block is not closed by \"##\"")
            if line == "##":
                return block
            if line != "#" and not line.startswith("# "):
                raise SchemaError(where, "a line of a documentation block must begin with \"# \"")
            block.lines.append(line[2:])

    def __iter__(self):
        """Blocks and objects."""
        while True:
            self.position = BETWEEN.match(self.text, self.position).end()
            if self.text.startswith("##", self.position):
                yield self.block()
                continue
            token, where = self.token()
            if token is None:
                return
            if token != "{":
                raise SchemaError(where, "an object must begin here")
            yield self.object(where)


def read(path, seen):
    """The blocks and objects of a file and of what it includes, each file once. `seen` collects the paths."""
    seen.append(path)
    for item in Reader(path):
        if isinstance(item, Block) or "include" not in item:
            yield item
            continue
        if len(item) != 1 or not isinstance(item["include"], str):
            raise SchemaError(item.where, "'include' takes one file name and nothing else")
        name = os.path.join(os.path.dirname(path), item["include"])
        if not os.path.isfile(name):
            raise SchemaError(item.where, f"there is no file {item['include']}")
        if name not in seen:
            yield from read(name, seen)
