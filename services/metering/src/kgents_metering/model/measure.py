"""Measuring one event by one meter: its value and its group, or why it has none; nothing is summed here.

The messages are OpenMeter's own, as its event listing shows them (`meterevent/adapter/event.go`).
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from decimal import Context, Decimal, InvalidOperation

from kgents_common import scalars
from kgents_metering.model.meters import Aggregation, Meter, Path, parse_path

# Nothing smaller than float64's least positive number is told from zero downstream; a sum must be storable.
SMALLEST_EXPONENT = -324
MAX_NUMBER_CHARACTERS = 400
# Groups are kept in memory, in rows and in answers: what is longer is no group but a text.
MAX_GROUP_CHARACTERS = 2048
GROUP_TOO_LARGE = "group_value_too_large"

_UNSTORABLE = re.compile("[\x00\ud800-\udfff]")
_MISSING = object()
_EVERY_DIGIT = Context(prec=1_000_000, Emin=-999_999, Emax=999_999)


@dataclass(frozen=True, slots=True)
class Sample:
    """What an event adds to a meter.

    Attributes:
        value: The number; None for COUNT and UNIQUE_COUNT.
        distinct: For UNIQUE_COUNT, blake2b-128 of the value as text.
        group: Key and value of each group_by, in the meter's order; `""` where the path is missing.
    """

    value: Decimal | None
    distinct: bytes | None
    group: tuple[tuple[str, str], ...]


@dataclass(frozen=True, slots=True)
class Invalid:
    """Why an event has no value for a meter; the event itself is accepted and stored."""

    code: str
    message: str


_NO_DATA = Invalid("null_value", "invalid event: null and missing value property")

Measure = Callable[[object], Sample | Invalid]


def compile_meter(meter: Meter) -> Measure:
    """A function from an event's decoded `data` (floats as Decimal) to what it adds, paths resolved once."""
    measure = _unbounded(meter)
    if not meter.group_by:
        return measure

    def bounded(data: object) -> Sample | Invalid:
        found = measure(data)
        if isinstance(found, Sample):
            for key, value in found.group:
                if len(value) > MAX_GROUP_CHARACTERS:
                    rule = f"group value of {key} is longer than {MAX_GROUP_CHARACTERS} characters"
                    return Invalid(GROUP_TOO_LARGE, f"invalid event: {rule}")
        return found

    return bounded


def _unbounded(meter: Meter) -> Measure:
    groups = tuple((key, _path(path)) for key, path in meter.group_by)
    get_group = _group_reader(groups)
    if meter.value_property is None:
        return lambda data: Sample(None, None, get_group(data))
    path, name = _path(meter.value_property), meter.value_property
    if meter.aggregation is Aggregation.UNIQUE_COUNT:

        def unique(data: object) -> Sample | Invalid:
            value = _walk(data, path)
            if value is _MISSING or value is None:
                return _absent(value, name) if data is not None else _NO_DATA
            return Sample(None, _digest(as_text(value)), get_group(data))

        return unique

    def number(data: object) -> Sample | Invalid:
        value = _walk(data, path)
        if type(value) is int and -(2**63) < value < 2**63:  # by far the most common
            return Sample(Decimal(value), None, get_group(data))
        parsed = _number(value, name) if data is not None else _NO_DATA
        return parsed if isinstance(parsed, Invalid) else Sample(parsed, None, get_group(data))

    return number


def as_text(value: object) -> str:
    """A JSON value as a group value or a distinct value: strings as they are, null `null`, others as JSON."""
    if isinstance(value, str):
        return _UNSTORABLE.sub("\ufffd", value)
    if value is None:
        return "null"
    if value is True:
        return "true"
    if value is False:
        return "false"
    if isinstance(value, int):
        return str(value)
    if isinstance(value, Decimal):
        return _plain(value)
    return _UNSTORABLE.sub("\ufffd", json.dumps(value, default=str, sort_keys=True, ensure_ascii=False))


def _plain(value: Decimal) -> str:
    """1.50 and 1.5 are one value, and so are 1.0 and 1."""
    normal = _EVERY_DIGIT.normalize(value)
    # A whole number is written out, so that 1e32 is the value that 10^32 is.
    is_whole = 0 <= normal.adjusted() < MAX_NUMBER_CHARACTERS and int(normal.as_tuple().exponent) >= 0
    is_plain = is_whole or -30 < normal.adjusted() < 30
    return format(normal, "f") if is_plain else str(normal)


def _path(text: str) -> Path:
    path = parse_path(text)
    assert path is not None, "a meter's paths are checked when it is parsed"  # noqa: S101 an invariant
    return path


def _walk(data: object, path: Path) -> object:
    value = data
    for step in path:
        if isinstance(step, str):
            if type(value) is not dict:
                return _MISSING
            value = value.get(step, _MISSING)
        elif type(value) is list and step < len(value):
            value = value[step]
        else:
            return _MISSING
    return value


def _group_reader(groups: tuple[tuple[str, Path], ...]) -> Callable[[object], tuple[tuple[str, str], ...]]:
    if not groups:
        return lambda _: ()

    def read(data: object) -> tuple[tuple[str, str], ...]:
        found = []
        for key, path in groups:
            value = _walk(data, path)
            found.append((key, "" if value is _MISSING else as_text(value)))
        return tuple(found)

    return read


def _absent(value: object, name: str) -> Invalid:
    if value is None:
        return Invalid("null_value", "invalid event: value cannot be null")
    return Invalid("missing_value", f'invalid event: missing value property: "{name}"')


def _number(value: object, name: str) -> Decimal | Invalid:
    if value is _MISSING or value is None:
        return _absent(value, name)
    if isinstance(value, bool):
        return Invalid("unsupported_type", "invalid event: unsupported value property type: bool")
    if isinstance(value, (int, Decimal)):
        try:
            found = Decimal(value)
        except InvalidOperation:
            return Invalid("infinite", "invalid event: value cannot be infinity")
        return _bounded(found)
    if isinstance(value, str):
        return _parsed(value)
    kind = "map[string]interface {}" if isinstance(value, Mapping) else "[]interface {}"
    return Invalid("unsupported_type", f"invalid event: unsupported value property type: {kind}")


def _parsed(text: str) -> Decimal | Invalid:
    shown = _UNSTORABLE.sub("\ufffd", text[:64])
    lower = text.lower().lstrip("+-")
    if lower == "nan":
        return Invalid("nan", "invalid event: value cannot be NaN")
    if lower in ("inf", "infinity"):
        return Invalid("infinite", "invalid event: value cannot be infinity")
    try:
        if len(text) <= MAX_NUMBER_CHARACTERS:
            return _bounded(scalars.decimal(text))
    except scalars.TooLargeError:
        return Invalid("infinite", "invalid event: value cannot be infinity")
    except ValueError:
        pass
    return Invalid("not_a_number", f"invalid event: value cannot be parsed as float64: {shown}")


def _bounded(value: Decimal) -> Decimal | Invalid:
    if scalars.is_infinite(value):
        return Invalid("infinite", "invalid event: value cannot be infinity")
    if value.adjusted() < SMALLEST_EXPONENT:
        return Decimal(0)
    if len(value.as_tuple().digits) > MAX_NUMBER_CHARACTERS:
        return Invalid("not_a_number", "invalid event: value cannot be parsed as float64: too many digits")
    return value


def _digest(text: str) -> bytes:
    return hashlib.blake2b(text.encode(), digest_size=16).digest()
