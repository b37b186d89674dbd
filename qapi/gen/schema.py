"""A whole schema: its definitions in order, found by name, and the headings they stand under."""
import dataclasses

from gen import comments, model, notation
from gen.notation import SchemaError


@dataclasses.dataclass
class Family:
    """What stands under one heading; the first is what stands before any."""
    where: object
    title: str
    text: str


class Schema:
    def __init__(self, definitions, families=()):
        self.definitions, self.families = definitions, list(families)
        self._by_name = {definition.name: definition for definition in definitions}

    def find(self, name):
        """The Definition of a type, or None for a built-in one."""
        return self._by_name.get(name)

    def of(self, *metas):
        return [definition for definition in self.definitions if definition.meta in metas]

    def members(self, definition):
        """Its base's, or its argument type's, and its own, in the order in which they are looked at."""
        inherited = self.members(self.find(definition.reference.name)) if definition.reference else []
        return inherited + definition.members

    def arguments(self, definition):
        """The type that has the arguments of a command, or the data of an event, or the Definition itself."""
        return self.find(definition.reference.name) if definition.reference else definition

    def reduced(self, names):
        """What is left where just `names` are defined."""
        return Schema(model.reduced(self.definitions, names), self.families)


def load(path):
    """The schema in a file, and the paths of all files that it is in."""
    definitions, families, paths, doc, names = [], [Family(None, None, "")], [], None, {}
    for item in notation.read(path, paths):
        if isinstance(item, notation.Block):
            refuse_lonely(doc)
            parsed = comments.parse(item)
            doc = parsed if isinstance(parsed, comments.Doc) else None
            if doc is None:
                add_text(families, parsed)
        elif "pragma" in item:
            check_pragma(item)
        else:
            definition = model.define(item, doc, families[-1])
            if definition.name in names or definition.name in model.BUILTINS:
                first = names.get(definition.name, "as a built-in type")
                raise SchemaError(definition.where, f"'{definition.name}' is defined already: {first}")
            names[definition.name] = definition.where
            definitions.append(definition)
            doc = None
    refuse_lonely(doc)
    return Schema(definitions, families), paths


def check_pragma(item):
    """The only one is what holds anyway."""
    if dict(item) != {"pragma": {"doc-required": True}}:
        raise SchemaError(item.where, "the only pragma is 'doc-required': true")


def refuse_lonely(doc):
    if doc:
        raise SchemaError(doc.where, f"no definition follows the description of '{doc.name}'")


def add_text(families, text):
    if text.title:
        families.append(Family(text.where, text.title, text.text))
    else:
        families[-1].text = "\n\n".join(part for part in (families[-1].text, text.text) if part)
