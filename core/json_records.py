"""JSON serialisation of frozen dataclasses: strict on writing, checked field by field on reading.

Knows JSON and type hints. Knows nothing of any one record.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import MISSING, asdict, fields
from functools import cache
from types import NoneType, UnionType
from typing import TYPE_CHECKING, Any, Literal, NoReturn, TypeVar, get_args, get_origin, get_type_hints

from core.errors import BadInput

if TYPE_CHECKING:
    from _typeshed import DataclassInstance

    Record = TypeVar("Record", bound=DataclassInstance)


def to_json(field: str, value: object, *, indent: int | None = None) -> bytes:
    """Return `value` as UTF-8 JSON; on one line unless `indent` is given.

    Raises BadInput, naming `field`, for values that JSON cannot hold: other types, NaN, infinity, cycles.
    """
    try:
        return json.dumps(value, allow_nan=False, ensure_ascii=False, indent=indent).encode()
    except (TypeError, ValueError, RecursionError) as error:
        raise BadInput(field, f"<{error}>", "JSON: objects, lists, text, finite numbers, booleans, null") from None


def from_json(data: bytes) -> dict[str, Any]:
    """Return the JSON object in `data`. Raises ValueError for anything else, NaN and infinity included."""
    try:
        value = json.loads(data, parse_constant=_refuse_constant)
    except RecursionError:
        raise ValueError("nested too deeply") from None
    if not isinstance(value, dict):
        raise ValueError("not a JSON object")
    return value


def plain(field: str, value: Mapping[str, object]) -> dict[str, Any]:
    """Return `value` after a round trip through JSON: tuples become lists, keys text. Raises BadInput as to_json."""
    return from_json(to_json(field, dict(value)))


def encode(record: DataclassInstance, *, indent: int | None = 2) -> bytes:
    """Return a dataclass of JSON types as JSON, on one line if `indent` is None. Raises BadInput as to_json.

    A field at its default is left out, so that an older release, which may not know the field, reads the record.
    """
    defaults = _defaults_of(type(record))
    values = {name: value for name, value in asdict(record).items() if defaults.get(name, MISSING) != value}
    return to_json(type(record).__name__, values, indent=indent)


def decode(kind: type[Record], data: bytes) -> Record:
    """Return the record of `kind` held by `data`.

    `kind` has only JSON types: str, int, float, bool, None, list, dict, Any, Literal and unions of them. A field with a
    default may be missing: the record was written before there was such a field. Raises ValueError, naming the field,
    where another is missing, and where one is unknown or of another type.
    """
    raw, names = from_json(data), {field.name for field in fields(kind)}
    needed = names - _defaults_of(kind).keys()
    if wrong := (raw.keys() - names) | (needed - raw.keys()):
        raise ValueError(f"fields missing or unknown: {', '.join(sorted(wrong))}")
    if (name := misfit(kind, raw)) is not None:
        raise ValueError(f"{name} has a wrong value: {raw[name]!r}")
    return kind(**raw)


def to_object(record: DataclassInstance) -> dict[str, Any]:
    """Return a record as a JSON object, as `encode` writes it."""
    return from_json(encode(record, indent=None))


def from_object(kind: type[Record], value: Mapping[str, Any]) -> Record:
    """Return the record of `kind` in a JSON object. Raises ValueError as `decode`."""
    return decode(kind, to_json(kind.__name__, dict(value)))


def misfit(kind: type[DataclassInstance], values: Mapping[str, object]) -> str | None:
    """Return the first name in `values` whose value is not of the type of that field of `kind`, or None."""
    hints = _hints_of(kind)
    return next((name for name, value in values.items() if not _fits(value, hints[name])), None)


@cache
def _defaults_of(kind: type[DataclassInstance]) -> Mapping[str, object]:
    """The default of each field that has one."""
    plain = {field.name: field.default for field in fields(kind) if field.default is not MISSING}
    return plain | {
        field.name: field.default_factory() for field in fields(kind) if field.default_factory is not MISSING
    }


# Evaluating the annotations dominates the cost of a check.
_hints_of = cache(get_type_hints)


def _fits(value: object, hint: Any) -> bool:  # noqa: ANN401 - a type hint has no common type
    origin, args = get_origin(hint), get_args(hint)
    if hint is Any:
        return True
    if origin is UnionType:
        return any(_fits(value, arg) for arg in args)
    if origin is Literal:
        return value in args
    if origin is list:
        return isinstance(value, list) and all(_fits(item, args[0]) for item in value)
    if origin is dict:
        return isinstance(value, dict) and all(_fits(item, args[1]) for item in value.values())
    # type() and not isinstance(): True must not pass as an int.
    return type(value) is (NoneType if hint is None else hint)


def _refuse_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is not JSON")
