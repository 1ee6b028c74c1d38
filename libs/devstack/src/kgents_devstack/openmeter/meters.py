"""Meters as OpenMeter v1 declares and keeps them; they count nothing themselves.

Source: `api/openapi.yaml`, schemas `Meter`, `MeterCreate` and `MeterUpdate`.
"""

from __future__ import annotations

import re
import secrets
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from pathlib import Path as FilePath
from typing import Any

import yaml

from kgents_devstack.openmeter.clocktext import parse, show
from kgents_devstack.openmeter.problem import Refusal
from kgents_devstack.openmeter.values import Path, parse_path

AGGREGATIONS = ("SUM", "COUNT", "UNIQUE_COUNT", "AVG", "MIN", "MAX", "LATEST")

_SLUG = re.compile(r"[a-z0-9]+(?:_[a-z0-9]+)*")
_GROUP_KEY = re.compile(r"[a-zA-Z_][0-9a-zA-Z_]*")
_CROCKFORD = "0123456789ABCDEFGHJKMNPQRSTVWXYZ"
_CREATABLE = {
    *("slug", "name", "description", "metadata"),
    *("eventType", "eventFrom", "aggregation", "valueProperty", "groupBy"),
}
_UPDATABLE = {"name", "description", "metadata", "groupBy"}


@dataclass(frozen=True, slots=True)
class Meter:
    """One meter; `value_path` is None for COUNT alone."""

    id: str
    slug: str
    event_type: str
    aggregation: str
    created_at: datetime
    updated_at: datetime
    deleted_at: datetime | None = None
    name: str | None = None
    description: str | None = None
    event_from: datetime | None = None
    value_property: str | None = None
    group_by: Mapping[str, str] = field(default_factory=dict)
    metadata: Mapping[str, str] | None = None

    @property
    def value_path(self) -> Path | None:
        """The steps of `valueProperty`."""
        return None if self.value_property is None else parse_path(self.value_property)

    def group_path(self, key: str) -> Path:
        """The steps of a group key's JSONPath."""
        return parse_path(self.group_by[key])

    def document(self) -> dict[str, object]:
        """As the API gives it."""
        found: dict[str, object] = {
            "id": self.id,
            "slug": self.slug,
            "name": self.name or self.slug,
            "aggregation": self.aggregation,
            "eventType": self.event_type,
            "createdAt": show(self.created_at),
            "updatedAt": show(self.updated_at),
        }
        optional = {
            "description": self.description,
            "eventFrom": self.event_from and show(self.event_from),
            "valueProperty": self.value_property,
            "groupBy": dict(self.group_by) or None,
            "metadata": self.metadata,
            "deletedAt": self.deleted_at and show(self.deleted_at),
        }
        return found | {name: value for name, value in optional.items() if value is not None}


class Meters:
    """Every meter that was declared, deleted ones too."""

    def __init__(self) -> None:
        self._by_id: dict[str, Meter] = {}

    def listed(self, *, deleted: bool = False) -> list[Meter]:
        """By slug."""
        shown = (meter for meter in self._by_id.values() if deleted or meter.deleted_at is None)
        return sorted(shown, key=lambda meter: meter.slug)

    def get(self, id_or_slug: str) -> Meter:
        """A meter that is not deleted.

        Raises:
            Refusal: With status 404.
        """
        for meter in self.listed():
            if id_or_slug in (meter.id, meter.slug):
                return meter
        raise Refusal(404, f"not found error: meter {id_or_slug} not found")

    def create(self, document: object, now: datetime) -> Meter:
        """Declare a meter (`MeterCreate`).

        Raises:
            Refusal: 400 for one that breaks a rule, 409 for a slug in use.
        """
        fields = _fields(document, _CREATABLE)
        meter = _checked(
            Meter(
                id=_ulid(now),
                slug=_text(fields, "slug") or "",
                event_type=_text(fields, "eventType") or "",
                aggregation=str(fields.get("aggregation")),
                created_at=now,
                updated_at=now,
                name=_text(fields, "name"),
                description=_text(fields, "description"),
                event_from=_moment(fields.get("eventFrom")),
                value_property=_text(fields, "valueProperty"),
                group_by=_texts(fields.get("groupBy"), "groupBy"),
                metadata=_texts(fields.get("metadata"), "metadata") or None,
            )
        )
        if any(meter.slug == other.slug for other in self.listed()):
            raise Refusal(409, f"conflict error: meter with slug {meter.slug} already exists")
        self._by_id[meter.id] = meter
        return meter

    def update(self, id_or_slug: str, document: object, now: datetime) -> Meter:
        """Change what may be changed (`MeterUpdate`); what it measures may not.

        Raises:
            Refusal: 400 or 404.
        """
        meter = self.get(id_or_slug)
        fields = _fields(document, _UPDATABLE)
        changed = _checked(
            replace(
                meter,
                name=_text(fields, "name"),
                description=_text(fields, "description"),
                metadata=_texts(fields.get("metadata"), "metadata") or None,
                group_by=_texts(fields.get("groupBy"), "groupBy") if "groupBy" in fields else meter.group_by,
                updated_at=now,
            )
        )
        self._by_id[meter.id] = changed
        return changed

    def delete(self, id_or_slug: str, now: datetime) -> None:
        """Mark it deleted; its slug is free again.

        Raises:
            Refusal: 404.
        """
        meter = self.get(id_or_slug)
        self._by_id[meter.id] = replace(meter, deleted_at=now)


def load(path: FilePath, now: datetime) -> Meters:
    """The meters of a YAML document `{meters: [...]}`.

    Raises:
        ValueError: The document is none, or a meter of it breaks a rule.
    """
    document = yaml.safe_load(path.read_text())
    if not isinstance(document, dict) or not isinstance(document.get("meters"), list):
        raise ValueError(f"{path.name}: needs a list `meters`")
    meters = Meters()
    for place, item in enumerate(document["meters"]):
        if isinstance(item, dict) and isinstance(item.get("eventFrom"), datetime):  # YAML knows moments
            moment = item["eventFrom"]
            item["eventFrom"] = show(moment if moment.tzinfo else moment.replace(tzinfo=UTC))
        try:
            meters.create(item, now)
        except Refusal as refusal:
            raise ValueError(f"{path.name}: meters[{place}]: {refusal.detail}") from None
    return meters


def _checked(meter: Meter) -> Meter:
    if not _SLUG.fullmatch(meter.slug) or len(meter.slug) > 64:
        raise _invalid("slug", "must match ^[a-z0-9]+(?:_[a-z0-9]+)*$ with 1 to 64 characters")
    if not meter.event_type:
        raise _invalid("eventType", "meter event type is required")
    if meter.aggregation not in AGGREGATIONS:
        raise _invalid("aggregation", f"must be one of {', '.join(AGGREGATIONS)}")
    if (meter.value_property is None) is not (meter.aggregation == "COUNT"):
        rule = "must be left out when" if meter.aggregation == "COUNT" else "is required unless"
        raise _invalid("valueProperty", f"{rule} aggregation is COUNT")
    for key, path in [("valueProperty", meter.value_property), *meter.group_by.items()]:
        try:
            parse_path(path or "$")
        except ValueError as error:
            raise _invalid(key, str(error)) from None
    for key, path in meter.group_by.items():
        if not _GROUP_KEY.fullmatch(key):
            raise _invalid("groupBy", f"invalid group by key {key!r}")
        if path == meter.value_property:
            raise _invalid("groupBy", f"{key!r} must not be the value property")
    return meter


def _fields(document: object, known: set[str]) -> Mapping[str, Any]:
    if not isinstance(document, dict):
        raise Refusal(400, "request body has an error: value must be an object", by_schema=True)
    for name in document:
        if name not in known:
            raise _invalid(str(name), "property is unsupported")
    return document


def _text(fields: Mapping[str, Any], name: str) -> str | None:
    value = fields.get(name)
    if value is not None and not isinstance(value, str):
        raise _invalid(name, "value must be a string")
    return value or None


def _texts(value: object, name: str) -> dict[str, str]:
    if value is None:
        return {}
    if not isinstance(value, dict) or not all(isinstance(item, str) for item in value.values()):
        raise _invalid(name, "value must be an object of strings")
    return {str(key): item for key, item in value.items()}


def _moment(value: object) -> datetime | None:
    if value is None:
        return None
    try:
        return parse(str(value))
    except ValueError as error:
        raise _invalid("eventFrom", str(error)) from None


def _invalid(name: str, reason: str) -> Refusal:
    return Refusal(400, f"validation error: invalid meter: {name}: {reason}")


def _ulid(now: datetime) -> str:
    """48 bits of milliseconds and 80 of chance in Crockford's base 32."""
    value = (int(now.timestamp() * 1000) << 80) | secrets.randbits(80)
    return "".join(_CROCKFORD[value >> shift & 31] for shift in range(125, -1, -5))
