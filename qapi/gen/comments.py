"""Documentation blocks, taken apart.

A block that begins with "@NAME:" documents the definition after it; others are text between the definitions, which may
begin with a heading, "= Title". The first describes, in this order or another:

    @NAME:                   the name, alone in its line
    text                     what it is
    @member: text            each member, argument or value; further lines are indented
    Features:                followed by "@feature: text" for each feature
    Returns: text            and Errors:, Since:, Note:, Example:; the latter is printed as it stands

Here is only known what the text says; check.py compares it with the definition.
"""
import re

from gen.notation import SchemaError, Where

ENTRY = re.compile(r"@([A-Za-z0-9_.-]+):(?:\s+(.*))?$")
TAG = re.compile(r"(Returns|Errors|Since|Notes?|Examples?|Features):(?:\s+(.*))?$")
HEADING = re.compile(r"= (.+)$")
ONCE = ("Returns", "Errors", "Since", "Features")


class Section:
    """Text under a tag. `lines` have lost what indents all but the first."""

    def __init__(self, where, tag, first):
        self.where, self.tag, self.lines = where, tag, [first or ""]
        self.is_bare = not first  # what follows needs no indentation

    def finish(self):
        rest = [line for line in self.lines[1:] if line]
        indent = min((len(line) - len(line.lstrip()) for line in rest), default=0)
        self.lines[1:] = [line[indent:] for line in self.lines[1:]]
        while self.lines and not self.lines[0]:
            del self.lines[0]
        while self.lines and not self.lines[-1]:
            del self.lines[-1]
        return self

    @property
    def text(self):
        return "\n".join(self.lines)


class Text:
    """Between definitions. `title` is None without a heading."""

    def __init__(self, block):
        self.where = block.where
        found = HEADING.match(block.lines[0]) if block.lines else None
        self.title = found[1] if found else None
        lines = block.lines[1:] if found else block.lines
        for line in lines:
            if HEADING.match(line):
                raise SchemaError(block.where, f"the heading \"{line}\" must stand in the first line of its block")
        self.text = "\n".join(lines).strip("\n")


class Doc:
    """Of one definition."""

    def __init__(self, block):
        self.where, self.name = block.where, ENTRY.match(block.lines[0])[1]
        self.members, self.features, self.sections = {}, {}, []
        self._in_features = False
        self._section = self._add(Section(self._at(block, 0), "", None))
        for number, line in enumerate(block.lines[1:], 1):
            self._line(self._at(block, number), line)
        for section in [*self.sections, *self.members.values(), *self.features.values()]:
            section.finish()
        self.sections = [section for section in self.sections if section.lines or section.tag]

    @staticmethod
    def _at(block, number):
        return Where(block.where.path, block.where.line + 1 + number)

    def section(self, *tags):
        """The first with one of these tags, or None."""
        return next((section for section in self.sections if section.tag in tags), None)

    def _add(self, section):
        self.sections.append(section)
        return section

    def _line(self, where, line):
        entry, tag = ENTRY.match(line), TAG.match(line)
        if entry:
            self._section = self._entry(where, *entry.groups())
        elif tag:
            self._section = self._tag(where, *tag.groups())
        elif not line or line.startswith(" ") or self._section.is_bare:
            self._section.lines.append(line)
        elif self._section.lines[-1]:
            raise SchemaError(where, "a line that goes on with a description must be indented")
        else:
            self._section = self._add(Section(where, "", line))
            self._section.is_bare = True

    def _entry(self, where, name, first):
        entries = self.features if self._in_features else self.members
        if name in entries:
            raise SchemaError(where, f"@{name} is described twice")
        entries[name] = Section(where, f"@{name}", first)
        entries[name].is_bare = False  # it never is: the name is the tag
        return entries[name]

    def _tag(self, where, tag, first):
        if tag in ONCE and self.section(tag):
            raise SchemaError(where, f"{tag}: stands here twice")
        self._in_features = tag == "Features"
        if self._in_features and first:
            raise SchemaError(where, "\"Features:\" must stand alone in its line")
        return self._add(Section(where, tag, first))


def parse(block):
    """A Doc or a Text."""
    return Doc(block) if block.lines and ENTRY.match(block.lines[0]) else Text(block)
