"""The event schema of OpenMeter's ingest (v1 and v3) and how it words what breaks it; it stores nothing.

A request is decoded by a typed decoder, which is fast; only when that refuses is it looked at again to say
what is wrong in the words of OpenMeter's schema validator. Source: `api/openapi.yaml` (schema `Event`),
`openmeter/ingest/httpdriver/ingest.go`, kin-openapi's messages.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from datetime import datetime
from typing import Annotated, Any, Literal, NoReturn

import msgspec

from kgents_devstack.openmeter.clocktext import EPOCH, parse, whole_seconds
from kgents_devstack.openmeter.problem import InvalidParameter, Refusal

SINGLE_TYPE = "application/cloudevents+json"
BATCH_TYPE = "application/cloudevents-batch+json"
EITHER_TYPE = "application/json"
CONTENT_TYPES = (SINGLE_TYPE, BATCH_TYPE, EITHER_TYPE)

_REQUIRED = ("id", "source", "specversion", "type", "subject")
_KNOWN = (*_REQUIRED, "time", "datacontenttype", "dataschema", "data")
_SPEC_VERSIONS = ("0.3", "1.0")
_FIRST_SECOND = whole_seconds(datetime.min.replace(tzinfo=EPOCH.tzinfo))
_LAST_SECOND = whole_seconds(datetime.max.replace(tzinfo=EPOCH.tzinfo))
_BAD_ESCAPE = re.compile(r"%(?![0-9A-Fa-f]{2})")
_CONTROL = re.compile(r"[\x00-\x1f\x7f]")
_SCHEME = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*:")

_Text = Annotated[str, msgspec.Meta(min_length=1)]
_Moment = Annotated[datetime, msgspec.Meta(tz=True)]
_NO_DATA = msgspec.Raw(b"null")


class Event(msgspec.Struct, gc=False):
    """A CloudEvent of v1; what else it carries is dropped without a word."""

    id: _Text
    source: _Text
    specversion: Literal["0.3", "1.0"]
    type: _Text
    subject: _Text
    time: _Moment | None = None
    datacontenttype: Literal["application/json"] | None = None
    dataschema: _Text | None = None
    data: msgspec.Raw = _NO_DATA


class StrictEvent(Event, gc=False, forbid_unknown_fields=True):
    """A CloudEvent of v3, which refuses what it does not know."""


_DECODERS: dict[tuple[str, bool], msgspec.json.Decoder[Any]] = {
    ("v1", False): msgspec.json.Decoder(Event),
    ("v1", True): msgspec.json.Decoder(list[Event]),
    ("v3", False): msgspec.json.Decoder(StrictEvent),
    ("v3", True): msgspec.json.Decoder(list[StrictEvent]),
}


def decode(body: bytes, content_type: str | None, *, version: str) -> Sequence[Event]:
    """The events of a request; all of them are valid, or it is refused as a whole.

    Raises:
        Refusal: With status 400, naming what is wrong first.
    """
    kind = _kind(content_type, version)
    if not body.strip():
        raise Refusal(400, "request body has an error: value is required but missing", by_schema=True)
    is_batch = kind == BATCH_TYPE or (kind == EITHER_TYPE and body.lstrip()[:1] == b"[")
    try:
        body.decode()
        found = _DECODERS[version, is_batch].decode(body)
    except (UnicodeDecodeError, RecursionError):
        _malformed("invalid UTF-8, or nested too deep")
    except msgspec.ValidationError as error:
        _explain(body, is_batch, kind, version, str(error))
    except msgspec.DecodeError as error:
        _malformed(str(error))
    events: list[Event] = found if is_batch else [found]
    if not events and kind == EITHER_TYPE:
        raise Refusal(400, "invalid event: no events found")
    checked = ""
    for place, event in enumerate(events):
        if bytes(event.data)[:1] not in (b"{", b"n") or not _in_range(event.time):
            _explain(body, is_batch, kind, version, f"event {place}: data or time")
        if event.source != checked:
            _check_source(event.source)
            checked = event.source
    return events


def _kind(content_type: str | None, version: str) -> str:
    """Which of the three it is: v1 compares the header whole, v3 without its parameters."""
    sent = content_type or ""
    plain = sent.partition(";")[0].strip().lower()
    if plain not in CONTENT_TYPES:
        raise Refusal(
            400,
            f'request body has an error: header Content-Type has unexpected value "{sent}"',
            by_schema=True,
            parameters=[InvalidParameter("content-type", "enum", f"unexpected value {sent!r}", "header")],
        )
    if version == "v1" and sent not in CONTENT_TYPES:
        raise Refusal(400, f"invalid content type: {sent}")
    return plain


def _in_range(moment: datetime | None) -> bool:
    return moment is None or _FIRST_SECOND <= whole_seconds(moment) <= _LAST_SECOND


def _check_source(source: str) -> None:
    """What Go's `url.Parse`, which reads a source, refuses."""
    reason = ""
    if _CONTROL.search(source):
        reason = "invalid control character in URL"
    elif _BAD_ESCAPE.search(source):
        reason = "invalid URL escape"
    elif ":" in source.partition("/")[0] and not _SCHEME.match(source):
        reason = "first path segment in URL cannot contain colon"
    if reason:
        raise Refusal(400, f"invalid event: source: {reason}")


def _malformed(reason: str) -> NoReturn:
    raise Refusal(
        400, f"request body has an error: failed to decode request body: {reason}", by_schema=True
    ) from None


def _explain(body: bytes, is_batch: bool, kind: str, version: str, fallback: str) -> NoReturn:
    """Refuse a request the decoder did not take, in the validator's words."""
    try:
        document = msgspec.json.decode(body)
    except msgspec.DecodeError as error:
        _malformed(str(error))
    schema = "IngestEventsBody" if kind == EITHER_TYPE else "" if is_batch else "Event"
    where = f"doesn't match schema #/components/schemas/{schema}" if schema else "doesn't match schema"
    if is_batch != isinstance(document, list):
        expected = "an array" if is_batch else "an object"
        raise _refuse(where, "", "type", f"value must be {expected}") from None
    for place, event in enumerate(document if is_batch else [document]):
        prefix = f"/{place}" if is_batch else ""
        broken = _broken(event, version)
        if broken is None:
            continue
        name, rule, reason = broken
        if rule == "specversion":
            raise Refusal(
                400, f"invalid event: {reason}", parameters=[_parameter(prefix, name, "enum", reason)]
            ) from None
        raise _refuse(where, f"{prefix}/{name}" if name else prefix, rule, reason) from None
    raise Refusal(400, f"invalid event: {fallback}") from None


def _refuse(where: str, pointer: str, rule: str, reason: str) -> Refusal:
    at = f'Error at "{pointer}": ' if pointer else ""
    prefix, _, name = pointer.rpartition("/")
    return Refusal(
        400,
        f"request body has an error: {where}: {at}{reason}",
        by_schema=True,
        parameters=[_parameter(prefix, name, rule, reason)],
    )


def _parameter(prefix: str, name: str, rule: str, reason: str) -> InvalidParameter:
    return InvalidParameter(".".join(filter(None, [*prefix.split("/"), name])) or "body", rule, reason)


def _broken(event: object, version: str) -> tuple[str, str, str] | None:
    """Field, rule and reason of the first rule an event breaks."""
    if not isinstance(event, dict):
        return "", "type", "value must be an object"
    for name in _REQUIRED:
        if name not in event:
            return name, "required", f'property "{name}" is missing'
        if event[name] is None:
            return name, "type", "Value is not nullable"
        if not isinstance(event[name], str):
            return name, "type", "value must be a string"
        if not event[name]:
            return name, "min_length", "minimum string length is 1"
    if version == "v3":
        for name in event:
            if name not in _KNOWN:
                return str(name), "unknown_property", f'property "{name}" is unsupported'
    return _broken_optional(event) or _broken_version(event["specversion"])


def _broken_optional(event: dict[str, Any]) -> tuple[str, str, str] | None:
    if event.get("datacontenttype") not in (None, EITHER_TYPE):
        return "datacontenttype", "enum", 'value is not one of the allowed values ["application/json"]'
    schema = event.get("dataschema")
    if schema is not None and (not isinstance(schema, str) or not schema):
        return (
            "dataschema",
            "type",
            "value must be a string" if schema != "" else "minimum string length is 1",
        )
    if not isinstance(event.get("data") or {}, dict) or event.get("data") in (False, 0, "", []):
        return "data", "type", "value must be an object"
    moment = event.get("time")
    if moment is None:
        return None
    if not isinstance(moment, str):
        return "time", "type", "value must be a string"
    try:
        is_moment = _in_range(parse(moment))
    except (ValueError, OverflowError):
        is_moment = False
    return None if is_moment else ("time", "format", 'string doesn\'t match the format "date-time"')


def _broken_version(version: str) -> tuple[str, str, str] | None:
    if version in _SPEC_VERSIONS:
        return None
    return "specversion", "specversion", f'specversion: unknown : "{version}"'
