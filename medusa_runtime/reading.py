"""Reading what people hand us: JSON checked against a type, and an error that names the file, the field and the mend.

The types of our files are the dataclasses that the rest works with, their fields annotated with the names below: pydantic reads
by them, the published schema is made from them, and code that makes such an object itself pays nothing. Fields that a type does
not have are let be, so that files of a newer minor version are read.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import fields
from functools import cache
from math import isfinite, log10
from pathlib import Path
from typing import Annotated, Any, TypeVar, get_type_hints, overload

from pydantic import AfterValidator, AllowInfNan, Field, GetPydanticSchema, Strict, TypeAdapter, ValidationError
from pydantic_core import ErrorDetails, core_schema, from_json

from .errors import InputError

T = TypeVar("T")
BOM = b"\xef\xbb\xbf"
LARGEST = 2**31 - 1  # of counts: the product of two is still an int64


def _finite(value: Any) -> Any:
    """Refuse NaN and infinity, which are no JSON and could not be written again, wherever they stand."""
    if isinstance(value, float) and not isfinite(value):
        raise InputError(f"holds {value}, which is no JSON")
    for entry in value.values() if isinstance(value, dict) else value if isinstance(value, list) else ():
        _finite(entry)
    return value


Integer = Annotated[int, Strict(), Field(ge=-(2**63), le=2**63 - 1)]
Count = Annotated[int, Strict(), Field(ge=0, le=LARGEST)]
Whole = Annotated[int, Strict(), Field(ge=1, le=LARGEST)]
Number = Annotated[float, Strict(), AllowInfNan(False)]
Positive = Annotated[Number, Field(gt=0)]
Share = Annotated[Number, Field(ge=0, le=1)]
Text = Annotated[str, Strict()]
Flag = Annotated[bool, Strict()]
Object = Annotated[dict[str, Any], AfterValidator(_finite)]  # kept as it is


def one_of(*known: str) -> GetPydanticSchema:
    """Annotates a text that must be one of these."""
    return GetPydanticSchema(lambda kind, handler: core_schema.literal_schema(list(known)))


def read_json(path: Path, mend: str = "") -> Any:
    """What a JSON file holds.

    Raises:
        InputError: names the file: not to be read, not UTF-8, not JSON, cut short, or nested some hundreds deep.
    """
    try:
        text = path.read_bytes()
    except OSError as error:
        raise InputError(f"{path}: cannot be read as JSON ({error.strerror}){_and(mend)}") from None
    return parse_json(text.removeprefix(BOM), str(path), mend)


def parse_json(text: str | bytes, where: str, mend: str = "") -> Any:
    """What JSON text holds; ``where`` and ``mend`` as in :func:`read_as`."""
    try:
        return from_json(text)
    except ValueError as error:
        raise InputError(f"{where}: not JSON ({error}){_and(mend)}") from None


@overload
def read_as(kind: type[T], data: Any, where: str, mend: str = "") -> T: ...
@overload
def read_as(kind: Any, data: Any, where: str, mend: str = "") -> Any: ...
def read_as(kind: Any, data: Any, where: str, mend: str = "") -> Any:
    """Data from JSON as an object of a type.

    Args:
        kind: a dataclass, or what else pydantic takes for a type.
        where: the file, and the line or field in it, for errors.
        mend: what to do about any error, where its own words do not say it.

    Raises:
        InputError: names the first field that is wrong.
    """
    try:
        return adapter(kind).validate_python(data)
    except ValidationError as error:
        raise InputError(f"{where}{told(error)}{_and(mend)}") from None


def check_fields(made: Any) -> None:
    """InputError where a field of a dataclass object made by hand is not what its annotation says."""
    kind: Any = type(made)
    for name, field in _field_adapters(kind).items():
        value = getattr(made, name)
        try:
            field.validate_python(value)
        except ValidationError as error:
            must = _must(error.errors(include_url=False)[0])
            raise InputError(f"{name.replace('_', '-')} {shown(value)} is out of range; it must be {must}") from None


@cache
def adapter(kind: Any) -> TypeAdapter[Any]:
    """pydantic's reader of a type, made once."""
    return TypeAdapter(kind)


@cache
def _field_adapters(kind: Any) -> dict[str, TypeAdapter[Any]]:
    hints = get_type_hints(kind, include_extras=True)
    return {f.name: TypeAdapter(hints[f.name]) for f in fields(kind)}


SCALARS = {
    "int": "a whole number", "float": "a finite number", "finite": "a finite number", "string": "text", "bool": "true or false",
}  # fmt: skip
CONTAINERS = {"tuple": "a list", "list": "a list", "dict": "an object", "dataclass": "an object"}
BOUNDS = {
    "greater_than_equal": "{ge:.10g} or more", "greater_than": "more than {gt:.10g}", "less_than_equal": "{le:.10g} or less",
    "less_than": "less than {lt:.10g}", "literal_error": "{expected}",
}  # fmt: skip
GIVEN = {bool: "true or false", str: "text", list: "a list", dict: "an object"}


def told(error: ValidationError) -> str:
    """The first of pydantic's errors in our words, to stand behind the file's name: ': field "heads" is 1.5, not a whole number'."""
    first = error.errors(include_url=False)[0]
    place, value, must = _place(first["loc"]), first["input"], _must(first)
    if first["type"] == "missing":
        return f"{place} is missing"
    if (cause := first.get("ctx", {}).get("error")) is not None:  # a check of ours
        return f"{place} {cause}" if str(cause).startswith("must be") else f"{place}: {cause}"
    if first["type"] in BOUNDS:
        return f"{place} is {shown(value)}; it must be {must}"
    if must in SCALARS.values() and (value is None or type(value) in (int, float)):
        return f"{place} is {shown(value)}, not {must}"
    given = "empty" if value == [] else GIVEN.get(type(value), shown(value))
    return f"{place} must be {must}, not {given}" if place else f" is not {must}"


def _must(error: ErrorDetails) -> str:
    """What pydantic would have liked better."""
    kind = error["type"]
    if kind in BOUNDS:
        return BOUNDS[kind].format(**error["ctx"])
    if kind == "too_short":
        return f"a list of {error['ctx']['min_length']} or more"
    return (SCALARS | CONTAINERS).get(kind.split("_")[0], error["msg"])


def _place(loc: Sequence[int | str]) -> str:
    parts = [f"entry {part}" if isinstance(part, int) else f'"{part}"' for part in loc]
    return f": {'' if isinstance(loc[0], int) else 'field '}{', '.join(parts)}" if parts else ""


def shown(value: Any) -> str:
    """A value in an error: short, whatever it is."""
    if isinstance(value, int) and abs(value) >= 10**20:
        return f"a number of {1 + int(log10(abs(value)))} digits"
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."


def _and(mend: str) -> str:
    return f"; {mend}" if mend else ""
