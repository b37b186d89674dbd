"""Definitions: what the objects of the notation mean.

define() turns one object into a Definition, and complains about keys and values that its kind does not have.
reduced() is the schema that is left when some names are defined, and others are not.
"""
import copy
import dataclasses
import typing

from gen.notation import Object, SchemaError

# JSON's name of the values of a built-in type, as introspection has it.
BUILTINS = {"str": "string", "number": "number", "bool": "boolean", "null": "null", "any": "value",
            **{name: "int" for name in ("int", "int8", "int16", "int32", "int64", "uint8", "uint16", "uint32",
                                        "uint64", "size")}}

KEYS = {"enum": {"data"}, "struct": {"data", "base"}, "union": {"base", "discriminator", "data"},
        "alternate": {"data"}, "event": {"data", "boxed"},
        "command": {"data", "boxed", "returns", "allow-oob", "success-response"}}
NEEDED = {"enum": {"data"}, "struct": {"data"}, "union": {"base", "discriminator", "data"}, "alternate": {"data"}}


class Ref(typing.NamedTuple):
    """A type by its name, or the array of it."""
    name: str
    is_array: bool

    def __str__(self):
        return f"[{self.name}]" if self.is_array else self.name


@dataclasses.dataclass
class Item:
    """A member, argument, enum value, feature, branch or alternative."""
    name: str
    where: object
    type: Ref = None
    optional: bool = False
    condition: object = None
    features: list = dataclasses.field(default_factory=list)


@dataclasses.dataclass
class Definition:
    """A type, a command or an event. `members` are those that stand here. `reference` is the type that has them
    instead, or the first of them: the 'base' of a struct or union, the 'data' of a command or event. `choices` are
    values, branches or alternatives."""
    meta: str
    name: str
    where: object
    doc: object = None
    family: object = None
    condition: object = None
    features: list = dataclasses.field(default_factory=list)
    members: list = dataclasses.field(default_factory=list)
    reference: Ref = None
    choices: list = dataclasses.field(default_factory=list)
    discriminator: str = None
    boxed: bool = False
    returns: Ref = None
    allow_oob: bool = False
    success_response: bool = True

    @property
    def is_type(self):
        return self.meta not in ("command", "event")


# ---- from the notation ---------------------------------------------------------------------------------------------

def check_condition(value, where):
    """'if': a name, or 'all', 'any', 'not' of more of them. Return: the value."""
    if isinstance(value, str) and value:
        return value
    if isinstance(value, Object) and len(value) == 1:
        key, inner = next(iter(value.items()))
        if key == "not":
            check_condition(inner, where)
            return value
        if key in ("all", "any") and isinstance(inner, list) and inner:
            for part in inner:
                check_condition(part, where)
            return value
    raise SchemaError(where, "'if' takes a name, or an object with one of 'all': [...], 'any': [...], 'not': ...")


def longhand(value, where, main, keys):
    """`value` as an object with the key `main`, of which it may be the short form, and some of `keys`."""
    if not isinstance(value, Object):
        short = value
        value = Object(where)
        value[main] = short
    for key in value:
        if key != main and key not in keys:
            raise SchemaError(value.where, f"unknown key '{key}'")
    if main not in value:
        raise SchemaError(value.where, f"'{main}' is missing")
    return value


def condition_of(value, where):
    return check_condition(value["if"], where) if "if" in value else None


def features_of(value, where):
    return named_list(value.get("features", []), where, "features", ())


def named_list(values, where, key, keys):
    """Enum values and features: names, or objects with a 'name'."""
    if not isinstance(values, list):
        raise SchemaError(where, f"'{key}' takes a list")
    items = []
    for value in values:
        full = longhand(value, where, "name", ("if", *keys))
        if not isinstance(full["name"], str):
            raise SchemaError(full.where, f"'{key}' takes names")
        items.append(Item(full["name"], full.where, condition=condition_of(full, full.where),
                          features=features_of(full, full.where)))
    return items


def ref_of(value, where):
    is_array = isinstance(value, list)
    name = value[0] if is_array and len(value) == 1 else value
    if not isinstance(name, str):
        raise SchemaError(where, "a type must be a name, or ['NAME'] for an array of it")
    return Ref(name, is_array)


def items_of(data, where, keys):
    """Members, branches and alternatives: an object of names and types."""
    if not isinstance(data, Object):
        raise SchemaError(where, "'data' takes an object")
    items = []
    for key, value in data.items():
        at = data.lines[key]
        full = longhand(value, at, "type", keys)
        items.append(Item(key.removeprefix("*"), at, ref_of(full["type"], at), key.startswith("*"),
                          condition_of(full, at), features_of(full, at)))
    return items


def flag(expression, key, default):
    value = expression.get(key, default)
    if not isinstance(value, bool):
        raise SchemaError(expression.lines[key], f"'{key}' takes true or false")
    return value


def members_or_reference(definition, value, where):
    if isinstance(value, str):
        definition.reference = Ref(value, False)
    else:
        definition.members = items_of(value, where, ("if", "features"))


def define(expression, doc, family):
    """The Definition that an object of the notation is."""
    metas = [key for key in expression if key in KEYS]
    if len(metas) != 1:
        raise SchemaError(expression.where, f"an object must have one of {', '.join(sorted(KEYS))}, or include")
    meta = metas[0]
    where, name = expression.where, expression[meta]
    if not isinstance(name, str):
        raise SchemaError(where, f"'{meta}' takes a name")
    for key in expression:
        if key not in KEYS[meta] | {meta, "if", "features"}:
            raise SchemaError(expression.lines[key], f"unknown key '{key}' in {meta} '{name}'")
    for key in sorted(NEEDED.get(meta, ())):
        if key not in expression:
            raise SchemaError(where, f"'{key}' is missing in {meta} '{name}'")
    result = Definition(meta, name, where, doc, family, condition_of(expression, where),
                        features_of(expression, where))
    data = expression.get("data", Object(where))
    if meta == "enum":
        result.choices = named_list(data, where, "data", ("features",))
    elif meta in ("union", "alternate"):
        result.choices = items_of(data, where, ("if",))
    else:
        members_or_reference(result, data, where)
    if meta == "struct":
        if result.reference:
            raise SchemaError(where, "'data' takes an object")
        result.reference = ref_of(expression["base"], where) if "base" in expression else None
    if meta == "union":
        members_or_reference(result, expression["base"], where)
        result.discriminator = expression["discriminator"]
        if not isinstance(result.discriminator, str):
            raise SchemaError(expression.lines["discriminator"], "'discriminator' takes a name")
    result.returns = ref_of(expression["returns"], where) if "returns" in expression else None
    result.boxed = flag(expression, "boxed", False)
    result.allow_oob = flag(expression, "allow-oob", False)
    result.success_response = flag(expression, "success-response", True)
    return result


# ---- under conditions ----------------------------------------------------------------------------------------------

def holds(condition, names):
    if condition is None:
        return True
    if isinstance(condition, str):
        return condition in names
    key, inner = next(iter(condition.items()))
    if key == "not":
        return not holds(inner, names)
    return (all if key == "all" else any)(holds(part, names) for part in inner)


def reduced(things, names):
    """Definitions, members, …, without those whose condition does not hold where just `names` are defined."""
    result = []
    for thing in things:
        if holds(thing.condition, names):
            thing = copy.copy(thing)
            for field in ("features", "members", "choices"):
                if hasattr(thing, field):
                    setattr(thing, field, reduced(getattr(thing, field), names))
            result.append(thing)
    return result
