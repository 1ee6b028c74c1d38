"""Meters as OpenMeter declares them: what of an event is counted, and how; it measures nothing itself.

Source of the rules: OpenMeter `api/openapi.yaml`, schemas `Meter` and `MeterCreate`.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from enum import StrEnum

from kgents_common import subjects
from kgents_common.errors import ConfigurationError

_SLUG = re.compile(r"[a-z0-9]+(?:_[a-z0-9]+)*")
_GROUP_KEY = re.compile(r"[a-zA-Z_][0-9a-zA-Z_]*")
_STEP = re.compile(r"\.([A-Za-z_][A-Za-z0-9_-]*)|\['([^']+)'\]|\[(\d+)\]")

Path = tuple[str | int, ...]


class Aggregation(StrEnum):
    """What becomes of the values in a window."""

    SUM = "SUM"
    COUNT = "COUNT"
    UNIQUE_COUNT = "UNIQUE_COUNT"
    AVG = "AVG"
    MIN = "MIN"
    MAX = "MAX"
    LATEST = "LATEST"


@dataclass(frozen=True, slots=True)
class Meter:
    """One meter.

    Attributes:
        value_property: JSONPath of the value in `data`; None for COUNT alone.
        group_by: Group key and JSONPath of its value, ordered by key.
        event_from: Events before this moment are not counted.
    """

    slug: str
    event_type: str
    aggregation: Aggregation
    value_property: str | None = None
    group_by: tuple[tuple[str, str], ...] = ()
    event_from: datetime | None = None
    name: str | None = None
    description: str = ""
    metadata: Mapping[str, str] = field(default_factory=dict)

    @property
    def fingerprint(self) -> bytes:
        """16 bytes over what it measures; name, description and metadata do not change it."""
        measured = [
            self.event_type,
            self.aggregation,
            self.value_property,
            list(self.group_by),
            self.event_from.isoformat() if self.event_from else None,
        ]
        return hashlib.blake2b(json.dumps(measured).encode(), digest_size=16).digest()

    def counts_at(self, moment: datetime) -> bool:
        """Whether an event of this moment is counted at all."""
        return self.event_from is None or moment >= self.event_from

    def definition(self) -> dict[str, object]:
        """In OpenMeter's terms."""
        found: dict[str, object] = {
            "slug": self.slug,
            "name": self.name or self.slug,
            "description": self.description,
            "eventType": self.event_type,
            "aggregation": str(self.aggregation),
            "groupBy": dict(self.group_by),
            "metadata": dict(self.metadata),
        }
        if self.value_property is not None:
            found["valueProperty"] = self.value_property
        if self.event_from is not None:
            found["eventFrom"] = self.event_from.isoformat().replace("+00:00", "Z")
        return found


@dataclass(frozen=True, slots=True)
class Declared:
    """What an operator wants in force.

    Attributes:
        version: Raised with every change, so that an older file cannot undo a newer one; None for no care.
    """

    meters: tuple[Meter, ...]
    version: int | None = None


def declared(document: object) -> Declared:
    """A document as `parse` takes it, with an optional `version`, a whole number from 1.

    Raises:
        ConfigurationError: As `parse`, or a version that is none.
    """
    meters = parse(document)
    version = document.get("version") if isinstance(document, dict) else None
    if version is not None and (not isinstance(version, int) or isinstance(version, bool) or version < 1):
        raise ConfigurationError("meters: version must be a whole number from 1")
    return Declared(meters, version)


def parse(document: object) -> tuple[Meter, ...]:
    """The meters of a document `{meters: [{slug, eventType, aggregation, …}]}`.

    Raises:
        ConfigurationError: Naming the meter, the field and the rule it breaks.
    """
    if not isinstance(document, dict) or not isinstance(document.get("meters"), list):
        raise ConfigurationError("meters: the document must be a mapping with a list `meters`")
    meters = tuple(_meter(item, f"meters[{index}]") for index, item in enumerate(document["meters"]))
    slugs = [meter.slug for meter in meters]
    for slug in slugs:
        if slugs.count(slug) > 1:
            raise ConfigurationError(f"meters: the slug {slug!r} is declared twice")
    return meters


def parse_path(path: str) -> Path | None:
    """The steps of a JSONPath of the kind meters use (`$.a.b`, `$['a b']`, `$.a[0]`); None for another."""
    if not path.startswith("$") or len(path) < 2:
        return None
    steps: list[str | int] = []
    at = 1
    while at < len(path):
        match = _STEP.match(path, at)
        if match is None:
            return None
        name, quoted, index = match.groups()
        steps.append(int(index) if index is not None else name or quoted)
        at = match.end()
    return tuple(steps)


def _meter(item: object, place: str) -> Meter:
    if not isinstance(item, dict):
        raise ConfigurationError(f"{place}: must be a mapping")

    def text(name: str, *, required: bool = True) -> str | None:
        value = item.get(name)
        if not value and not required:
            return None
        if not isinstance(value, str) or not value:
            raise ConfigurationError(f"{place}.{name}: must be a non-empty string")
        return value

    unknown = set(item) - _FIELDS
    if unknown:
        raise ConfigurationError(f"{place}: unknown field {sorted(map(str, unknown))[0]!r}")
    slug = text("slug") or ""
    if not _SLUG.fullmatch(slug) or len(slug) > 64:
        raise ConfigurationError(f"{place}.slug: must be 1 to 64 of a-z, 0-9, joined by single '_'")
    event_type = text("eventType") or ""
    if not subjects.is_type(event_type):
        raise ConfigurationError(f"{place}.eventType: must be {subjects.TYPE_RULE}")
    try:
        aggregation = Aggregation(str(item.get("aggregation")))
    except ValueError:
        raise ConfigurationError(f"{place}.aggregation: must be one of {', '.join(Aggregation)}") from None
    value_property = text("valueProperty", required=aggregation is not Aggregation.COUNT)
    if aggregation is Aggregation.COUNT and value_property is not None:
        raise ConfigurationError(f"{place}.valueProperty: must be absent for COUNT")
    if value_property is not None and parse_path(value_property) is None:
        raise ConfigurationError(f"{place}.valueProperty: must be a path such as $.tokens or $.a.b[0]")
    return Meter(
        slug=slug,
        event_type=event_type,
        aggregation=aggregation,
        value_property=value_property,
        group_by=_group_by(item.get("groupBy") or {}, value_property, place),
        event_from=_moment(item.get("eventFrom"), f"{place}.eventFrom"),
        name=text("name", required=False),
        description=text("description", required=False) or "",
        metadata={str(k): str(v) for k, v in (item.get("metadata") or {}).items()},
    )


_FIELDS = {
    "slug",
    "name",
    "description",
    "eventType",
    "eventFrom",
    "aggregation",
    "valueProperty",
    "groupBy",
    "metadata",
}


def _group_by(value: object, value_property: str | None, place: str) -> tuple[tuple[str, str], ...]:
    if not isinstance(value, dict):
        raise ConfigurationError(f"{place}.groupBy: must map keys to paths")
    for key, path in value.items():
        if not isinstance(key, str) or not _GROUP_KEY.fullmatch(key):
            raise ConfigurationError(f"{place}.groupBy: {key!r} is not a key (letters, digits, '_')")
        if key in ("subject", "customer_id"):
            raise ConfigurationError(f"{place}.groupBy.{key}: is a name of the query's own")
        if not isinstance(path, str) or parse_path(path) is None:
            raise ConfigurationError(f"{place}.groupBy.{key}: must be a path such as $.model")
        if path == value_property:
            raise ConfigurationError(f"{place}.groupBy.{key}: must differ from valueProperty")
    return tuple(sorted(value.items()))


def _moment(value: object, place: str) -> datetime | None:
    if value is None:
        return None
    try:
        moment = value if isinstance(value, datetime) else datetime.fromisoformat(str(value))
    except ValueError:
        raise ConfigurationError(f"{place}: must be an RFC 3339 date and time") from None
    return moment.replace(tzinfo=UTC) if moment.tzinfo is None else moment.astimezone(UTC)
