"""The schema as a page for people: docs/qmp-reference.md.

Commands stand under the headings of the schema, in its order; events and types follow by name. Everything is there,
whatever it depends on. Texts are Markdown already, but for @name, which becomes a link where it names a definition.
"""
import re

from gen.notation import SchemaError

HEAD = """# QMP reference

<!-- Made from the schema, qapi/*.json, by qapi/gen-schema.py: change that instead. -->

Each command with its arguments, what it returns and what goes wrong; then events, and the types of all that. Where no
arguments are listed a command takes none, where nothing is returned the answer is the empty object. `[T]` is an array
of `T`. Integers have the range of their type: `int` is `int64`, `size` is `uint64`.
"""
KINDS = {"event": " (event)", "enum": " (enum)", "struct": " (struct)", "union": " (union)",
         "alternate": " (alternate)", "command": ""}
# Code, names, and what Markdown would take for more than it is: a "* " at the beginning of a line it is to take so.
SPECIAL = re.compile(r"``.*?``|`[^`]*`|(?<![\w@])@(?P<name>[A-Za-z][A-Za-z0-9_-]*)|(?P<mark><|\*(?! )|(?<!\n)(?<!^)\*)")


def title(definition):
    return definition.name + KINDS[definition.meta]


def slug(heading):
    """What a heading is linked by."""
    return re.sub(r"[^\w -]", "", heading.lower()).replace(" ", "-")


def by_name(definitions):
    return sorted(definitions, key=lambda definition: definition.name)


def condition(value, nested=False):
    """'if' in words."""
    if isinstance(value, str):
        return f"`{value}`"
    key, inner = next(iter(value.items()))
    if key == "not":
        return f"not {condition(inner, True)}"
    text = (" and " if key == "all" else " or ").join(condition(part, True) for part in inner)
    return f"({text})" if nested and len(inner) > 1 else text


class Page:
    def __init__(self, schema):
        self.schema, self.parts = schema, [HEAD]

    def add(self, text):
        """A paragraph, a table or a heading."""
        if text:
            self.parts.append(text.rstrip("\n") + "\n")

    # ---- texts -----------------------------------------------------------------------------------------------------

    def link(self, name):
        definition = self.schema.find(name)
        return f"[`{name}`](#{slug(title(definition))})" if definition else f"`{name}`"

    def type(self, ref):
        return f"[{self.link(ref.name)}]" if ref.is_array else self.link(ref.name)

    def text(self, text):
        def replace(found):
            if found["name"]:
                return self.link(found["name"])
            return "\\" + found["mark"] if found["mark"] else found[0]
        return SPECIAL.sub(replace, text)

    def cell(self, text):
        """A text in one line, as tables have it."""
        text = self.text(text).replace("|", "\\|")
        text = re.sub(r"\n\n+", "<br><br>", text)
        return re.sub(r"\n(?=[-*] )", "<br>", text).replace("\n", " ")

    def table(self, heads, rows):
        if rows:
            lines = [heads, ["---"] * len(heads), *rows]
            self.add("\n".join("| " + " | ".join(row) + " |" for row in lines))

    # ---- parts of a definition -------------------------------------------------------------------------------------

    def notes(self, item):
        """What is to be said of an item beside its type and its text."""
        notes = ["optional"] if item.optional else []
        notes += [feature.name for feature in item.features]
        notes += [f"if {condition(item.condition)}"] if item.condition else []
        return "".join(f", {note}" for note in notes)

    def members(self, definition, what):
        self.table([what, "type", ""], [[f"`{item.name}`", self.type(item.type) + self.notes(item),
                                         self.cell(definition.doc.members[item.name].text)]
                                        for item in definition.members])

    def inherited(self, definition):
        if definition.reference:
            what = "Its arguments are" if definition.meta == "command" else "It has"
            end = ", and:" if definition.members else "."
            self.add(f"{what} the members of {self.type(definition.reference)}{end}")

    def features(self, definition):
        conditions = {feature.name: self.notes(feature) for feature in definition.features}
        self.add("\n".join(f"- **{name}**{conditions.get(name, '')}: {self.text(section.text)}"
                           for name, section in definition.doc.features.items()))

    def sections(self, definition):
        doc = definition.doc
        for section in doc.sections[1:]:
            text = self.text(section.text)
            if section.tag == "Returns":
                self.add(f"**Returns** {self.type(definition.returns)}: {text}")
            elif section.tag.startswith("Example"):
                self.add(f"```\n{section.text}\n```")
            elif section.tag == "Since":
                self.add(f"Since {text}.")
            elif section.tag == "Features":
                self.add("**Features**")
                self.features(definition)
                self.add(text)
            elif section.tag:
                self.add(f"**{section.tag}**: {text}")
            else:
                self.add(text)

    def begin(self, definition):
        self.add(f"### {title(definition)}")
        self.add(self.text(definition.doc.sections[0].text))
        if definition.condition:
            self.add(f"Only where {condition(definition.condition)}.")

    # ---- definitions -----------------------------------------------------------------------------------------------

    def command(self, definition):
        self.begin(definition)
        if definition.allow_oob:
            self.add("It can be sent out of band.")
        if not definition.success_response:
            self.add("Nothing is answered when it succeeds.")
        self.inherited(definition)
        self.members(definition, "argument")
        self.sections(definition)

    def event(self, definition):
        self.begin(definition)
        self.inherited(definition)
        self.members(definition, "data")
        self.sections(definition)

    def a_type(self, definition):
        self.begin(definition)
        doc = definition.doc
        self.inherited(definition)
        self.members(definition, "member")
        if definition.meta == "enum":
            self.table(["value", ""], [[f"`{item.name}`{self.notes(item)}", self.cell(doc.members[item.name].text)]
                                       for item in definition.choices])
        elif definition.meta == "alternate":
            self.table(["one of", ""], [[self.type(item.type) + self.notes(item),
                                         self.cell(doc.members[item.name].text)] for item in definition.choices])
        elif definition.meta == "union":
            self.table([f"where `{definition.discriminator}` is", "also the members of"],
                       [[f"`{item.name}`{self.notes(item)}", self.type(item.type)] for item in definition.choices])
        self.sections(definition)

    # ---- the page --------------------------------------------------------------------------------------------------

    def summary(self, definition):
        """The first sentence of what it is."""
        paragraph = definition.doc.sections[0].text.split("\n\n")[0].replace("\n", " ")
        return self.text(re.split(r"(?<=[.]) ", paragraph)[0].rstrip("."))

    def contents(self, groups):
        lines = []
        for heading, group in groups:
            lines.append(f"- [{heading}](#{slug(heading)})")
            lines += [f"  - {self.link(definition.name)}: {self.summary(definition)}" for definition in group]
        self.add("\n".join([*lines, "- [Types](#types)"]))

    def check_anchors(self):
        seen = {"events", "types"}
        for where, name in [*((family.where, family.title) for family in self.schema.families if family.title),
                            *((definition.where, title(definition)) for definition in self.schema.definitions)]:
            if slug(name) in seen:
                raise SchemaError(where, f"another heading is linked by #{slug(name)}")
            seen.add(slug(name))

    def make(self):
        self.check_anchors()
        commands, events = self.schema.of("command"), by_name(self.schema.of("event"))
        types = by_name([definition for definition in self.schema.definitions if definition.is_type])
        families = [(family, [command for command in commands if command.family is family])
                    for family in self.schema.families]
        self.add(self.text(self.schema.families[0].text))
        self.contents([*((family.title, group) for family, group in families if group), ("Events", events)])
        for family, group in families:
            if group:
                self.add(f"## {family.title}")
                self.add(self.text(family.text))
                for command in group:
                    self.command(command)
        for heading, group, add in (("Events", events, self.event), ("Types", types, self.a_type)):
            self.add(f"## {heading}")
            for definition in group:
                add(definition)
        return "\n".join(self.parts)


def reference(schema):
    return Page(schema).make()
