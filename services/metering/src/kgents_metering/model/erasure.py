"""What is left of an event's data when all but the measured is erased; nothing is stored here."""

from __future__ import annotations

from collections.abc import Iterable
from decimal import Decimal
from typing import Any

import msgspec

from kgents_metering.model.meters import Meter, Path, parse_path

ERASED = "erased"

_DATA = msgspec.json.Decoder(float_hook=Decimal)
_ENCODER = msgspec.json.Encoder(decimal_format="number")
_MISSING = object()


def measured_paths(meters: Iterable[Meter]) -> list[Path]:
    """Where meters look: at their values and their groups."""
    found: list[Path] = []
    for meter in meters:
        texts = [path for _, path in meter.group_by]
        texts += [meter.value_property] if meter.value_property is not None else []
        found += [path for text in texts if (path := parse_path(text)) is not None]
    return found


def reduced(data: str, paths: Iterable[Path]) -> str:
    """The JSON object `data` with nothing in it but what is at these paths, each value as it was written."""
    whole = _DATA.decode(data)
    kept: dict[str, Any] = {}
    for path in paths:
        value = _at(whole, path)
        if value is not _MISSING:
            _put(kept, path, value)
    return _ENCODER.encode(kept).decode()


def _at(value: Any, path: Path) -> Any:
    for step in path:
        if isinstance(step, str):
            if not isinstance(value, dict) or step not in value:
                return _MISSING
        elif not isinstance(value, list) or step >= len(value):
            return _MISSING
        value = value[step]
    return value


def _put(kept: Any, path: Path, value: Any) -> None:
    """Set a value, making the objects and lists on the way to it; what a list held before it is null."""
    for step, following in zip(path, (*path[1:], None), strict=True):
        is_last = following is None
        fresh: Any = value if is_last else {} if isinstance(following, str) else []
        if isinstance(step, int):
            kept += [None] * (step + 1 - len(kept))
            if is_last or kept[step] is None:
                kept[step] = fresh
        elif is_last or kept.get(step) is None:
            kept[step] = fresh
        kept = kept[step]
