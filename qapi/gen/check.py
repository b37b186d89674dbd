"""What must hold in a schema beyond its notation.

check() looks at every definition: names, the types it refers to, what its kind asks for, and whether its comment
describes all that is in it and nothing else. check_types() is the part of it that a schema must pass again when
conditions have taken things out of it. The first thing wrong raises SchemaError.
"""
import re

from gen.model import BUILTINS
from gen.notation import SchemaError

NAMES = {"command": r"[a-z][a-z0-9_-]*", "event": r"[A-Z][A-Z0-9_]*", "type": r"[A-Z][A-Za-z0-9]*",
         "member": r"[a-z][a-z0-9_-]*", "value": r"[a-z0-9][a-z0-9_.-]*", "feature": r"[a-z][a-z0-9-]*"}


def fail(thing, what):
    raise SchemaError(thing.where, what)


def check_name(thing, kind):
    if not re.fullmatch(NAMES[kind], thing.name):
        fail(thing, f"'{thing.name}' is no {kind} name: it must match {NAMES[kind]}")


def check_items(items, kind):
    seen = set()
    for item in items:
        check_name(item, kind)
        if item.name in seen:
            fail(item, f"the {kind} '{item.name}' stands here twice")
        seen.add(item.name)
        check_items(item.features, "feature")


def check_names(definition):
    check_name(definition, "type" if definition.is_type else definition.meta)
    check_items(definition.features, "feature")
    check_items(definition.members, "member")
    check_items(definition.choices, "value" if definition.meta in ("enum", "union") else "member")


# ---- types ---------------------------------------------------------------------------------------------------------

def meta_of(schema, ref):
    """What kind of type a Ref is: 'array', 'builtin' or the kind of the definition; None when there is none."""
    definition = schema.find(ref.name)
    if ref.name not in BUILTINS and (definition is None or not definition.is_type):
        return None
    return "array" if ref.is_array else definition.meta if definition else "builtin"


def check_ref(schema, thing, ref, metas=None):
    meta = meta_of(schema, ref)
    if meta is None:
        fail(thing, f"there is no type '{ref.name}'")
    if metas and meta not in metas:
        fail(thing, f"'{ref}' is of kind {meta}; here must be one of {', '.join(metas)}")


def references(definition):
    """Every Ref in a definition, with who has it."""
    if definition.reference:
        yield definition, definition.reference
    if definition.returns:
        yield definition, definition.returns
    for item in definition.members + definition.choices:
        if item.type:
            yield item, item.type


def check_base(schema, definition):
    """The 'base' of a struct or union, and that no chain of them comes back."""
    seen = {definition.name}
    while definition.reference:
        check_ref(schema, definition, definition.reference, ["struct"])
        if definition.reference.name in seen:
            fail(definition, f"'{definition.reference.name}' is its own base")
        seen.add(definition.reference.name)
        definition = schema.find(definition.reference.name)


def check_disjoint(thing, members, others):
    for member in members:
        if any(member.name == other.name for other in others):
            fail(thing, f"the member '{member.name}' is also a member of its base")


def check_struct(schema, definition):
    check_base(schema, definition)
    if definition.reference:
        check_disjoint(definition, definition.members, schema.members(schema.find(definition.reference.name)))


def check_union(schema, definition):
    check_base(schema, definition)
    members = schema.members(definition)
    tag = next((member for member in members if member.name == definition.discriminator), None)
    if not tag or tag.optional or tag.condition or meta_of(schema, tag.type) != "enum":
        fail(definition, f"the discriminator '{definition.discriminator}' must be a member of the base, of an enum type"
                         " and always there")
    values = [value.name for value in schema.find(tag.type.name).choices]
    for branch in definition.choices:
        if branch.name not in values:
            fail(branch, f"'{branch.name}' is no value of {tag.type}")
        check_ref(schema, branch, branch.type, ["struct"])
        check_disjoint(branch, schema.members(schema.find(branch.type.name)), members)


def json_kind(schema, ref):
    """By what an alternate tells its alternatives apart."""
    meta = meta_of(schema, ref)
    kind = {"enum": "string", "struct": "object", "union": "object"}.get(meta, meta)
    return BUILTINS[ref.name].replace("int", "number") if kind == "builtin" else kind


def check_alternate(schema, definition):
    seen = set()
    for item in definition.choices:
        check_ref(schema, item, item.type, ["builtin", "enum", "struct", "union", "array"])
        kind = json_kind(schema, item.type)
        if kind == "value" or kind in seen:
            fail(item, f"the alternative '{item.name}' cannot be told from the others by its JSON type, {kind}")
        seen.add(kind)


def check_call(schema, definition):
    """A command or an event."""
    if definition.reference:
        check_ref(schema, definition, definition.reference, ["struct", "union"])
        if meta_of(schema, definition.reference) == "union" and not definition.boxed:
            fail(definition, "a union as 'data' needs 'boxed': true")
    elif definition.boxed:
        fail(definition, "'boxed' needs the name of a type as 'data'")


CHECKS = {"struct": check_struct, "union": check_union, "alternate": check_alternate, "command": check_call,
          "event": check_call}


def check_types(schema):
    for definition in schema.definitions:
        for thing, ref in references(definition):
            check_ref(schema, thing, ref)
    for definition in schema.definitions:
        if definition.meta in CHECKS:
            CHECKS[definition.meta](schema, definition)


def check_clashes(schema):
    """Names that differ and would be one in C."""
    seen = {}
    for command in schema.of("command"):
        other = seen.setdefault(command.name.replace("-", "_"), command)
        if other is not command:
            fail(command, f"'{command.name}' and '{other.name}' would have one handler")


# ---- documentation -------------------------------------------------------------------------------------------------

def check_described(definition, things, sections, what):
    for thing in things:
        if thing.name not in sections or not sections[thing.name].lines:
            fail(thing, f"the {what} '{thing.name}' of '{definition.name}' is not described")
    names = {thing.name for thing in things}
    for name, section in sections.items():
        if name not in names:
            fail(section, f"'{definition.name}' has no {what} '{name}' to be described here")


def features_within(definition):
    """Its own, and those of its members and values: they are described together. One of each name."""
    found = {feature.name: feature for feature in definition.features}
    for item in definition.members + definition.choices:
        for feature in item.features:
            found.setdefault(feature.name, feature)
    return list(found.values())


def check_sections(definition):
    doc = definition.doc
    for section in doc.sections:
        if section.tag in ("Returns", "Errors") and definition.meta != "command":
            fail(section, f"{section.tag}: is for commands")
        if section.tag and section.tag != "Features" and not section.lines:
            fail(section, f"{section.tag}: is empty")
    returns = doc.section("Returns")
    if definition.returns and not returns:
        fail(definition, f"what '{definition.name}' returns is not described")
    if returns and not definition.returns:
        fail(returns, f"'{definition.name}' returns nothing to be described here")


def check_doc(definition):
    doc = definition.doc
    if not doc:
        fail(definition, f"'{definition.name}' is not described")
    if doc.name != definition.name:
        fail(doc, f"this describes '{doc.name}', and '{definition.name}' follows")
    if not definition.is_type and not definition.family.title:
        fail(definition, f"'{definition.name}' stands under no heading (\"# = TITLE\" in a block of its own)")
    if not doc.sections or doc.sections[0].tag or not doc.sections[0].lines:
        fail(doc, f"what '{doc.name}' is must be said first")
    what = {"enum": "value", "alternate": "alternative", "command": "argument"}.get(definition.meta, "member")
    members = definition.choices if definition.meta in ("enum", "alternate") else definition.members
    check_described(definition, members, doc.members, what)
    check_described(definition, features_within(definition), doc.features, "feature")
    check_sections(definition)


def check(schema):
    for definition in schema.definitions:
        check_names(definition)
    check_types(schema)
    check_clashes(schema)
    for definition in schema.definitions:
        check_doc(definition)
