"""Values checked by pydantic; error sentences name the parameter, its value and what is allowed."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from pydantic import TypeAdapter, ValidationError

from relinv.errors import UserError, unknown

if TYPE_CHECKING:
    from typing_extensions import TypeForm

T = TypeVar("T")
Schema = Mapping[str, Any]  # a JSON schema, as pydantic writes it


def parse(kind: TypeForm[T], values: Any, where: str, file: Path | str = "params.yaml") -> T:
    """Return `values` checked as a `kind` (a pydantic model or any annotated type).

    `where` is the dotted name of the values in `file`, "" for the whole file. Raises UserError with one
    sentence per problem: dotted name, value, allowed values, file.
    """
    adapter = TypeAdapter(kind)
    try:
        return adapter.validate_python(values)
    except ValidationError as error:
        schema = adapter.json_schema()
        problems = [_sentence(schema, problem, where, file) for problem in error.errors(include_url=False)]
        raise UserError("\n".join(problems)) from None


def _sentence(schema: Schema, problem: Mapping[str, Any], where: str, file: Path | str) -> str:
    """Return one pydantic problem as one sentence."""
    location = [part for part in problem["loc"] if part != "[key]"]
    name = ".".join(str(part) for part in [*([where] if where else []), *location])
    if problem["loc"][-1:] == ("[key]",):
        return f"The name of '{name}' in {file} is not allowed: it must be text{_bounds(problem.get('ctx', {}))}."
    if problem["type"] in {"extra_forbidden", "unexpected_keyword_argument"}:  # from a model, from a dataclass
        siblings = _section(schema, _at(schema, location[:-1])).get("properties", {})
        return f"{unknown('parameter', str(location[-1]), siblings)} It stands in {file} as '{name}'."
    allowed = _describe(schema, _at(schema, location)) or problem["msg"]
    if problem["type"] == "missing":
        return f"Parameter '{name}' is missing from {file}: add it; it must be {allowed}."
    return f"Parameter '{name}' is {problem['input']!r} in {file}: it must be {allowed}."


def _at(schema: Schema, location: list[Any]) -> Schema:
    """Return the part of `schema` that describes the value at `location`, {} if unknown."""
    node: Any = _resolved(schema, schema)
    for part in location:
        node = _section(schema, node)
        patterns = [*node.get("patternProperties", {}).values(), {}]  # of a mapping whose keys have a pattern
        inside = node.get("properties", {}).get(part) or node.get("additionalProperties") or node.get("items")
        inside = inside or patterns[0]
        node = _resolved(schema, inside if isinstance(inside, Mapping) else {})
    return node


def _section(schema: Schema, node: Schema) -> Schema:
    """Return `node`, or the section if it describes one that may be null."""
    options = [_resolved(schema, option) for option in node.get("anyOf", [])]
    return next((option for option in options if "properties" in option), node)


def _resolved(schema: Schema, node: Schema) -> Schema:
    """Return `node`, or the definition it refers to."""
    reference = node.get("$ref")
    return schema["$defs"][reference.rpartition("/")[2]] if reference else node


def _describe(schema: Schema, node: Schema) -> str:
    """Return in words which values a schema allows, "" if it does not say."""
    if "anyOf" in node:
        return " or ".join(_describe(schema, _resolved(schema, option)) for option in node["anyOf"])
    if "enum" in node or "const" in node:
        return "one of " + ", ".join(str(value) for value in node.get("enum", [node.get("const")]))
    kinds = {"integer": "an integer", "number": "a number", "string": "text", "boolean": "true or false",
             "array": "a list", "object": "a section of named values", "null": "null"}  # fmt: skip
    kind = kinds.get(node.get("type", ""), "")
    return f"{kind}{_bounds(node)}"


def _bounds(node: Schema) -> str:
    """Return the range, step, length or pattern a schema sets, with a leading space."""
    limits = {"minimum": "at least", "exclusiveMinimum": "above", "maximum": "at most",
              "exclusiveMaximum": "below", "multipleOf": "a multiple of", "pattern": "matching",
              "minLength": "of length at least", "minItems": "of length at least",
              "maxItems": "of length at most"}  # fmt: skip
    parts = [f"{words} {node[key]}" for key, words in limits.items() if key in node]
    if node.get("uniqueItems"):
        parts.append("with each item once")
    if "rule" in node:  # in words, what a JSON schema cannot express
        parts.append(node["rule"])
    return " " + " and ".join(parts) if parts else ""
