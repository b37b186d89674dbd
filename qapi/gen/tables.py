"""The schema as C: tables for qapi/schema.h, and the declarations of the handlers.

A type has a table when a command or an event leads to it. Types refer to each other in circles, so all are declared
before the first is defined.
"""
from gen import model
from gen.model import Ref

BANNER = "/* Made by qapi/gen-schema.py: change the schema instead. */\n"
KINDS = {**{name: name.upper() for name in model.BUILTINS}, "int64": "INT", "size": "UINT64"}
EMPTY = "type_q_empty"


def c_name(name):
    return name.replace("-", "_").replace(".", "_")


def indented(text):
    return "".join(f"    {line}\n" for line in text.splitlines())


def strings(names):
    """A NULL-terminated array of strings."""
    return "(const char *const[]){" + "".join(f'"{name}", ' for name in names) + "NULL}"


class Emitter:
    def __init__(self, schema):
        self.schema = schema
        self.tables = {}  # C name of a type: what fills it

    # ---- types -----------------------------------------------------------------------------------------------------

    def type(self, ref):
        """The C name of a type, which has its table from now on."""
        name = f"{'list' if ref.is_array else 'type'}_{ref.name}"
        if name not in self.tables:
            self.tables[name] = None  # it may refer to itself
            self.tables[name] = self.table(ref)
        return name

    def table(self, ref):
        definition = self.schema.find(ref.name)
        if ref.is_array:
            return self.fields("ARRAY", "", [f".element = &{self.type(Ref(ref.name, False))}"])
        if not definition:
            return self.fields(KINDS[ref.name], ref.name, [])
        make = {"enum": self.enum, "alternate": self.alternate}.get(definition.meta, self.object)
        return make(definition)

    @staticmethod
    def fields(kind, name, others, features=()):
        lines = [f".kind = QAPI_TYPE_{kind}", f'.name = "{name}"', *others]
        if features:
            lines.append(f".features = {strings(feature.name for feature in features)}")
        return ",\n".join(lines) + ",\n"

    def enum(self, definition):
        others = [f".values = {strings(value.name for value in definition.choices)}"]
        if any(value.features for value in definition.choices):
            rows = (f"    {strings(feature.name for feature in value.features) if value.features else 'NULL'},\n"
                    for value in definition.choices)
            others.append(".value_features = (const char *const *const[]){\n" + "".join(rows) + "}")
        return self.fields("ENUM", definition.name, others, definition.features)

    def member(self, item):
        fields = [f'.name = "{item.name}"', f".type = &{self.type(item.type)}"]
        if item.optional:
            fields.append(".optional = TRUE")
        if item.features:
            fields.append(f".features = {strings(feature.name for feature in item.features)}")
        return f"    {{{', '.join(fields)}}},\n"

    @staticmethod
    def rows(field, c_type, rows):
        """An array and its length."""
        if not rows:
            return []
        return [f".{field} = (const {c_type}[]){{\n{''.join(rows)}}}", f".n_{field} = {len(rows)}"]

    def alternate(self, definition):
        rows = [self.member(item) for item in definition.choices]
        return self.fields("ALTERNATE", definition.name, self.rows("members", "QapiMember", rows),
                           definition.features)

    def object(self, definition):
        """A struct or a union, or the arguments of a command or event that stand in it."""
        members = self.schema.members(definition)
        others = self.rows("members", "QapiMember", [self.member(item) for item in members])
        if definition.discriminator:
            others.append(f'.tag = "{definition.discriminator}"')
            others += self.rows("variants", "QapiVariant", self.variants(definition, members))
        is_type = definition.is_type
        return self.fields("OBJECT", definition.name if is_type else "", others,
                           definition.features if is_type else ())

    def variants(self, definition, members):
        """One for each value of the tag: those with a branch, then those without."""
        tag = next(member for member in members if member.name == definition.discriminator)
        rows = [f'    {{"{branch.name}", &{self.type(branch.type)}}},\n' for branch in definition.choices]
        branches = {branch.name for branch in definition.choices}
        values = (value.name for value in self.schema.find(tag.type.name).choices)
        return rows + [f'    {{"{value}", NULL}},\n' for value in values if value not in branches]

    # ---- commands and events ---------------------------------------------------------------------------------------

    def arguments(self, definition):
        if definition.reference:
            return self.type(definition.reference)
        if not definition.members:
            return self.empty()
        name = f"{'arguments' if definition.meta == 'command' else 'data'}_{c_name(definition.name)}"
        self.tables[name] = self.object(definition)
        return name

    def empty(self):
        self.tables[EMPTY] = self.fields("OBJECT", "", [])
        return EMPTY

    def row(self, definition, fields):
        if definition.features:
            fields.append(f".features = {strings(feature.name for feature in definition.features)}")
        return "{" + ",\n ".join([f'.name = "{definition.name}"', *fields]) + "},\n"

    def command(self, definition, prefix):
        returns = self.type(definition.returns) if definition.returns else self.empty()
        fields = [f".arguments = &{self.arguments(definition)}", f".returns = &{returns}"]
        if definition.allow_oob:
            fields.append(".allow_oob = TRUE")
        if not definition.success_response:
            fields.append(".no_response = TRUE")
        fields.append(f".handler = {handler(definition, prefix)}")
        return self.row(definition, fields)

    def event(self, definition):
        return self.row(definition, [f".data = &{self.arguments(definition)}"])


def handler(definition, prefix):
    return f"{prefix}qmp_{c_name(definition.name)}"


def by_name(definitions):
    return sorted(definitions, key=lambda definition: definition.name)


def tables(schema, prefix, header):
    """schema-tables.c. `header` declares the handlers."""
    emitter = Emitter(schema)
    commands = [emitter.command(command, prefix) for command in by_name(schema.of("command"))]
    events = [emitter.event(event) for event in by_name(schema.of("event"))]
    parts = [BANNER, f'#include "{header}"\n\n']
    parts += [f"static const QapiType {name};\n" for name in emitter.tables]
    parts += [f"\nstatic const QapiType {name} = {{\n{indented(fields)}}};\n"
              for name, fields in emitter.tables.items()]
    for field, c_type, rows in (("commands", "QapiCommand", commands), ("events", "QapiEvent", events)):
        if rows:
            parts.append(f"\nstatic const {c_type} {field}[] = {{\n{indented(''.join(rows))}}};\n")
    counts = [f"    .{field} = {field},\n    .n_{field} = {len(rows)},\n"
              for field, rows in (("commands", commands), ("events", events)) if rows]
    parts.append(f"\nconst QapiSchema {prefix}qapi_schema = {{\n{''.join(counts)}}};\n")
    return "".join(parts)


def handlers(schema, prefix):
    """schema-handlers.h."""
    parts = [BANNER, '#pragma once\n\n#include "qapi/schema.h"\n\n']
    if prefix:
        parts.append(f"extern const QapiSchema {prefix}qapi_schema;\n\n")
    parts += [f"QapiHandler {handler(command, prefix)};\n" for command in by_name(schema.of("command"))]
    return "".join(parts)
