"""Why meters do not count an event, in OpenMeter's words; said when events are listed, not before.

Source: `openmeter/meter/parse.go`, `openmeter/meterevent/adapter/event.go`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from kgents_devstack.openmeter.meters import Meter
from kgents_devstack.openmeter.store import StoredEvent
from kgents_devstack.openmeter.values import decode, parse_path


def validation_errors(event: StoredEvent, meters: Sequence[Meter]) -> list[str]:
    """One for each meter of its type that does not count it; empty where all do."""
    matching = [meter for meter in meters if meter.event_type == event.type]
    if not matching:
        return [f"no meter found for event type: {event.type}"]
    data = decode(event.data)
    found = (_unmeasurable(meter, data) for meter in matching)
    return [f"invalid event: {reason}" for reason in found if reason is not None]


def _unmeasurable(meter: Meter, data: object) -> str | None:
    if meter.value_property is None:
        return None
    if data is None:
        return "null and missing value property"
    value: Any = data
    for step in parse_path(meter.value_property):
        try:
            value = None if isinstance(value, str) else value[step]
        except (KeyError, IndexError, TypeError):
            return f'missing value property: "{meter.value_property}"'
    if value is None:
        return "value cannot be null"
    if meter.aggregation == "UNIQUE_COUNT":
        return None
    if isinstance(value, str):
        return _unparsable(value)
    kinds = {bool: "bool", dict: "map[string]interface {}", list: "[]interface {}"}
    kind = kinds.get(type(value))
    return None if kind is None else f"unsupported value property type: {kind}"


def _unparsable(text: str) -> str | None:
    lowered = text.lower().lstrip("+-")
    if lowered == "nan":
        return "value cannot be NaN"
    if lowered in ("inf", "infinity"):
        return "value cannot be infinity"
    try:
        is_number = text.strip() == text and "_" not in text and abs(float(text)) != float("inf")
    except ValueError:
        is_number = False
    return None if is_number else f"value cannot be parsed as float64: {text}"
