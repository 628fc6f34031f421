"""JSON and environment variables into frozen attrs values, with errors that name the spot.

Keys are the camelCase of the field names. Nothing is coerced: a string is not a number, and 1 is not true.
"""

from __future__ import annotations

import difflib
import json
import pathlib
import types
import typing
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from decimal import Decimal
from enum import Enum
from typing import Annotated, Any, Final, TypeAlias, TypeVar, get_args, get_origin

import attrs
import cattrs

T = TypeVar("T")
Rule: TypeAlias = Callable[[Any], None]
"""Stands in `Annotated[type, rule]`; raises ValueError that says what was expected."""


class Invalid(Exception):
    """A value that cannot be used. `path` leads to it from the top, `problem` says what is wrong."""

    def __init__(self, problem: str, path: tuple[str, ...] = ()) -> None:
        super().__init__(problem)
        self.problem = problem
        self.path = path

    @property
    def spot(self) -> str:
        """The path as `storage.endpoint` or `domains[1]`; "" is the document itself."""
        return "".join(part if part.startswith("[") else f".{part}" for part in self.path).removeprefix(".")


@contextmanager
def at(*path: str) -> Iterator[None]:
    """Errors raised inside concern what stands at this path below the current one."""
    try:
        yield
    except Invalid as error:
        raise Invalid(error.problem, (*path, *error.path)) from None


def between(first: int, last: int) -> Rule:
    """A number from `first` to `last`, both included."""

    def check(value: int) -> None:
        if not first <= value <= last:
            raise ValueError(f"expected a number from {first} to {last}, found {value}")

    return check


def parse_json(text: str) -> Any:
    """A JSON document, its fractions as Decimal. Raises Invalid for bad JSON, duplicate keys and NaN."""
    try:
        return json.loads(
            text, object_pairs_hook=_unique, parse_float=Decimal, parse_constant=_refuse_constant
        )
    except json.JSONDecodeError as error:
        raise Invalid(f"not JSON: {error.msg} at line {error.lineno} column {error.colno}") from None
    except RecursionError:
        raise Invalid("not usable: nested too deeply") from None
    except ValueError:
        raise Invalid("not usable: a number has too many digits") from None


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    result = dict(pairs)
    if len(result) < len(pairs):
        keys = [key for key, _ in pairs]
        raise Invalid(f"duplicate key {quoted(next(key for key in keys if keys.count(key) > 1))}")
    return result


def _refuse_constant(name: str) -> Any:
    raise Invalid(f"not JSON: {name} is no JSON number")


def quoted(text: str) -> str:
    """The text in double quotes, on one line."""
    return json.dumps(text, ensure_ascii=False)


def kind_of(value: object) -> str:
    """What a decoded JSON value is, in words."""
    if value is None:
        return "null"
    if isinstance(value, bool):
        return "true" if value else "false"
    names = {str: "a string", dict: "an object", list: "a list", int: "a number", Decimal: "a number"}
    return names.get(type(value), "something else")


def key_of(field_name: str) -> str:
    """The camelCase key of a field: `metrics_port` is `metricsPort`."""
    first, *others = field_name.split("_")
    return first + "".join(map(str.capitalize, others))


NO_KEY: Final[Mapping[str, bool]] = types.MappingProxyType({"no key": True})
"""The metadata of a field that no document and no variable sets."""


def fields_of(cls: type) -> dict[str, attrs.Attribute[Any]]:
    """The fields of an attrs class by their keys, types resolved; those marked NO_KEY left out."""
    attrs.resolve_types(cls)
    return {key_of(field.name): field for field in attrs.fields(cls) if "no key" not in field.metadata}


def unknown_key(key: str, known: Mapping[str, object]) -> Invalid:
    """The error for a key that is not among the known ones, with the nearest of them."""
    by_lower = {each.lower(): each for each in known}
    near = difflib.get_close_matches(key.lower(), by_lower, n=1)
    hint = f"; did you mean {quoted(by_lower[near[0]])}?" if near else ""
    return Invalid(f"unknown key {quoted(key)}{hint}")


def _refuse_unknown(value: Mapping[str, object], known: Mapping[str, object]) -> None:
    for key in value:
        if key not in known:
            raise unknown_key(key, known)


def present(value: object, cls: type, converter: cattrs.Converter) -> dict[str, Any]:
    """The fields of the class that an object gives, structured, by field name. Raises Invalid."""
    if not isinstance(value, dict):
        raise Invalid(f"expected an object, found {kind_of(value)}")
    fields, found = fields_of(cls), {}
    _refuse_unknown(value, fields)
    for key, item in value.items():
        with at(key):
            found[fields[key].name] = converter.structure(item, typing.cast(Any, fields[key].type))
    return found


def strict_converter() -> cattrs.Converter:
    """A cattrs converter for JSON that coerces nothing and raises Invalid.

    It knows str, int, bool, paths, enums by their values, `Annotated` with rules, unions with None, tuples,
    maps with string keys and attrs classes.
    """
    converter = cattrs.Converter(detailed_validation=False)
    for cls, name in ((str, "a string"), (int, "a whole number"), (bool, "true or false")):
        converter.register_structure_hook(cls, _exactly(cls, name))
    converter.register_structure_hook(pathlib.Path, _structure_path)
    converter.register_structure_hook_func(_is_enum, _structure_enum)
    converter.register_structure_hook_factory(attrs.has, lambda cls: _class_hook(cls, converter))
    converter.register_structure_hook_factory(_is(tuple), lambda cls: _tuple_hook(cls, converter))
    converter.register_structure_hook_factory(_is(Mapping), lambda cls: _map_hook(cls, converter))
    converter.register_structure_hook_factory(_is(Annotated), lambda cls: _annotated_hook(cls, converter))
    return converter


_Hook: TypeAlias = Callable[[Any, Any], Any]


def _is(origin: Any) -> Callable[[Any], bool]:
    # typing.Mapping and collections.abc.Mapping have one origin.
    return lambda cls: get_origin(cls) is (get_origin(origin) or origin)


def _is_enum(cls: Any) -> bool:
    return isinstance(cls, type) and issubclass(cls, Enum)


def _exactly(cls: type, name: str) -> _Hook:
    def structure(value: Any, _: Any) -> Any:
        # type() and not isinstance(): true is an int in Python.
        if type(value) is not cls:
            raise Invalid(f"expected {name}, found {kind_of(value)}")
        return value

    return structure


def _structure_path(value: Any, _: Any) -> pathlib.Path:
    if not isinstance(value, str) or not value or "\0" in value:
        raise Invalid(f"expected a path, found {quoted(value) if isinstance(value, str) else kind_of(value)}")
    return pathlib.Path(value).absolute()


def _structure_enum(value: Any, cls: Any) -> Any:
    values = [each.value for each in cls]
    if value not in values:
        found = quoted(value) if isinstance(value, str) else kind_of(value)
        raise Invalid(f"expected {' or '.join(map(quoted, values))}, found {found}")
    return cls(value)


def _class_hook(cls: type[T], converter: cattrs.Converter) -> _Hook:
    def structure(value: Any, _: Any) -> T:
        if isinstance(value, dict):
            fields = fields_of(cls)
            # First: what is missing may be there, spelt wrong.
            _refuse_unknown(value, fields)
            for key, field in fields.items():
                if field.default is attrs.NOTHING and key not in value:
                    raise Invalid(f"missing key {quoted(key)}")
        return cls(**present(value, cls, converter))

    return structure


def _tuple_hook(cls: Any, converter: cattrs.Converter) -> _Hook:
    item_type = get_args(cls)[0]

    def structure(value: Any, _: Any) -> tuple[Any, ...]:
        if not isinstance(value, list):
            raise Invalid(f"expected a list, found {kind_of(value)}")
        items = []
        for index, item in enumerate(value):
            with at(f"[{index}]"):
                items.append(converter.structure(item, item_type))
        return tuple(items)

    return structure


def _map_hook(cls: Any, converter: cattrs.Converter) -> _Hook:
    item_type = get_args(cls)[1]

    def structure(value: Any, _: Any) -> Mapping[str, Any]:
        if not isinstance(value, dict):
            raise Invalid(f"expected an object, found {kind_of(value)}")
        items = {}
        for key, item in value.items():
            with at(key):
                items[key] = converter.structure(item, item_type)
        return types.MappingProxyType(items)

    return structure


def _annotated_hook(cls: Any, converter: cattrs.Converter) -> _Hook:
    inner, *rules = get_args(cls)

    def structure(value: Any, _: Any) -> Any:
        structured = converter.structure(value, inner)
        for rule in rules:
            try:
                rule(structured)
            except ValueError as error:
                raise Invalid(str(error)) from None
        return structured

    return structure


@attrs.frozen
class Override:
    """A key set by an environment variable: the variable's name, the key's path, the value to put there."""

    name: str
    path: tuple[str, ...]
    value: Any


def read_overrides(
    cls: type, environ: Mapping[str, str], prefix: str, ignored: frozenset[str]
) -> tuple[Override, ...]:
    """The overrides among the variables that begin with the prefix, outer keys before the keys inside them.

    `PREFIX_GET_MODE` and `PREFIX_GETMODE` are getMode, `PREFIX_STORAGE__ENDPOINT` is storage.endpoint.
    Strings are taken as they are, all else is JSON. Raises Invalid, with the variable as its path, for a
    variable that is no key, and for two that give one key different values.
    """
    found: dict[tuple[str, ...], Override] = {}
    for name in sorted(environ):
        if not name.startswith(prefix) or name in ignored:
            continue
        with at(name):
            path, field_type = _resolve(cls, name.removeprefix(prefix).split("__"))
            override = Override(name, path, _decode(environ[name], field_type))
            other = found.setdefault(path, override)
            if other.value != override.value:
                raise Invalid(f"contradicts {other.name}")
    return tuple(sorted(found.values(), key=lambda override: (len(override.path), override.path)))


def apply_overrides(document: Mapping[str, Any], overrides: tuple[Override, ...]) -> dict[str, Any]:
    """The document with the overrides in it; the document itself stays as it was."""
    result = dict(document)
    for override in overrides:
        *outer, last = override.path
        place = result
        for key in outer:
            inner = place.get(key)
            place[key] = dict(inner) if isinstance(inner, dict) else {}
            place = place[key]
        place[last] = override.value
    return result


def _resolve(cls: type, segments: list[str]) -> tuple[tuple[str, ...], Any]:
    path: list[str] = []
    current: Any = cls
    for segment in segments:
        if not attrs.has(current):
            raise Invalid(f"{'.'.join(path)} has no keys of its own; set it whole")
        fields = {key.lower(): key for key in fields_of(current)}
        plain = segment.replace("_", "").lower()
        if plain not in fields:
            raise unknown_key(segment, fields_of(current))
        path.append(fields[plain])
        current = _bare(fields_of(current)[fields[plain]].type)
    return tuple(path), current


def _bare(field_type: Any) -> Any:
    """The type without its rules and without None."""
    if get_origin(field_type) is Annotated:
        return _bare(get_args(field_type)[0])
    if get_origin(field_type) in {types.UnionType, typing.Union}:
        return _bare(next(each for each in get_args(field_type) if each is not type(None)))
    return field_type


def _decode(text: str, field_type: Any) -> Any:
    if field_type in {str, pathlib.Path} or _is_enum(field_type):
        return text
    try:
        return parse_json(text)
    except Invalid:
        if text.lstrip().startswith(("[", "{")):
            raise
        return text
