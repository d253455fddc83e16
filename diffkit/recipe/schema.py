"""The JSON Schema of recipes, for editors: draft 7, with every installed component."""

from __future__ import annotations

from typing import Any

from pydantic import TypeAdapter
from pydantic.json_schema import GenerateJsonSchema, JsonSchemaValue
from pydantic_core import core_schema

from ..config import Config
from ..errors import DiffkitError
from ..host import Registered, registry
from .effective import chosen_of
from .signature import REQUIRED, Parameter, component_parameters, must_be_given, section_parameters
from .spec import TASKS

DEFAULT_TASK = "diffusion"
DRAFT = "http://json-schema.org/draft-07/schema#"
Schema = dict[str, Any]


class _Draft7(GenerateJsonSchema):
    """Pydantic writes draft 2020-12, which differs for recipes in tuples only."""

    def tuple_schema(self, schema: core_schema.TupleSchema) -> JsonSchemaValue:
        made = super().tuple_schema(schema)
        if "prefixItems" in made:
            made["items"] = made.pop("prefixItems")
        return made


LIMITS = {"gt": "exclusiveMinimum", "ge": "minimum", "lt": "exclusiveMaximum", "le": "maximum"}
"""Names that pydantic uses for constraints of a union."""


def json_schema() -> Schema:
    """Return the schema of a whole recipe. Imports every installed component; those that cannot be loaded are left
    out.
    """
    definitions: dict[str, Schema] = {}
    for found in registry().entries():
        try:
            definitions[_id(found)] = _component(found)
        except DiffkitError:
            continue  # `diffkit plugins` reports it; editors complete the rest
    names = {kind: [f for f in registry().entries(kind) if _id(f) in definitions] for kind in registry().kinds}
    for kind, installed in names.items():
        definitions[f"kind:{kind}"] = _name_or_mapping(installed)
    made = {task: _section(cls) for task, cls in TASKS.items()}
    for task, one in made.items():
        one["properties"]["task"] = {"enum": [task]}
        if task != DEFAULT_TASK:
            one["required"] = [*one["required"], "task"]
    return {"$schema": DRAFT, "title": "diffkit recipe", "anyOf": list(made.values()), "definitions": definitions}


def _id(found: Registered) -> str:
    return f"{found.kind}:{found.plugin.name}:{found.name}"


def _names(found: Registered) -> list[str]:
    alone = sum(one.name == found.name for one in registry().entries(found.kind)) == 1
    return [found.name, found.qualified] if alone else [found.qualified]


def _name_or_mapping(installed: list[Registered]) -> Schema:
    bare = [name for found in installed if not _required(found) for name in _names(found)]
    mappings = [{"$ref": f"#/definitions/{_id(found)}"} for found in installed]
    texts = [{"type": "string", "enum": bare}] if bare else []
    return {"anyOf": [*texts, *mappings]} if installed else {"not": {}, "description": "no component is installed"}


def _required(found: Registered) -> list[str]:
    return [p.name for p in component_parameters(found.load(), found.kind) if p.required]


def _component(found: Registered) -> Schema:
    parameters = [p for p in component_parameters(found.load(), found.kind) if p.role != "injected"]
    properties = {"name": {"enum": _names(found), "description": found.entry.summary}}
    return _object({**properties, **{p.name: _field(p) for p in parameters}}, ["name", *_required(found)])


def _object(properties: Schema, required: list[str]) -> Schema:
    made: Schema = {"type": "object", "additionalProperties": False, "properties": properties}
    return made | {"required": required} if required else made


def _section(cls: type[Config]) -> Schema:
    parameters = section_parameters(cls)
    owner = next((p for p in parameters if p.name == "component"), None)
    fields = {p.name: _field(p) for p in parameters if p is not owner}
    required = [p.name for p in parameters if p is not owner and must_be_given(p)]
    described = {"description": " ".join((cls.__doc__ or "").split())}
    if owner is None:
        return described | _object(fields, required)
    installed = _loadable(owner.target)
    variants = [made | {"properties": {**fields, **made["properties"]}} for made in map(_component, installed)]
    bare = [name for f in installed if not _required(f) for name in _names(f)]
    absent = [{"type": "null"}, _object(fields, [])] if owner.default is not REQUIRED else []
    texts = [{"type": "string", "enum": bare}] if bare else []
    return described | {"anyOf": [*texts, *variants, *absent] or [{"not": {}}]}


def _loadable(kind: str) -> list[Registered]:
    found = []
    for one in registry().entries(kind):
        try:
            component_parameters(one.load(), kind)
        except DiffkitError:
            continue  # as in json_schema
        found.append(one)
    return found


def _field(parameter: Parameter) -> Schema:
    """Return the schema of one field or option, with its default if that is a plain value."""
    one = {"$ref": f"#/definitions/kind:{parameter.target}"}
    if parameter.role == "component":
        return {"anyOf": [one, {"type": "null"}]} if parameter.optional or _named_default(parameter) else one
    if parameter.role == "components":
        return _list_or_one(one)
    if parameter.role == "named components":
        return {"anyOf": [{"type": "object", "additionalProperties": one}, {"type": "null"}]}
    if parameter.role == "section":
        return _with_shorthand(parameter.target)
    if parameter.role == "sections":
        return _list_or_one(_with_shorthand(parameter.target))
    made: Schema = TypeAdapter(parameter.annotation).json_schema(schema_generator=_Draft7)
    made = _inlined(made, made.pop("$defs", {}))
    made = {LIMITS.get(keyword, keyword): value for keyword, value in made.items()}
    if parameter.default is not REQUIRED and isinstance(parameter.default, bool | int | float | str):
        made = made | {"default": parameter.default}
    return made


def _inlined(schema: Any, definitions: Schema) -> Any:
    """Return the schema with its references replaced: `#/$defs` is a place of the whole document, not of one field."""
    if isinstance(schema, list):
        return [_inlined(item, definitions) for item in schema]
    if not isinstance(schema, dict):
        return schema
    if "$ref" in schema:
        return definitions[schema["$ref"].rpartition("/")[2]]
    return {key: _inlined(value, definitions) for key, value in schema.items()}


def _named_default(parameter: Parameter) -> bool:
    return not isinstance(parameter.default, str) and chosen_of(parameter.default, parameter.target) is not None


def _list_or_one(schema: Schema) -> Schema:
    return {"anyOf": [{"type": "array", "items": schema}, schema, {"type": "null"}]}


def _with_shorthand(cls: type[Config]) -> Schema:
    schema = _section(cls)
    if cls.shorthand is None:
        must = any(must_be_given(inner) for inner in section_parameters(cls))
        return schema if must or "anyOf" in schema else {"anyOf": [schema, {"type": "null"}]}
    bare = next(p for p in section_parameters(cls) if p.name == cls.shorthand)
    return {"anyOf": [schema, _field(bare), {"type": "null"}]}
