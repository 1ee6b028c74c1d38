"""CloudEvents' published conformance cases for HTTP; where we differ is in docs/compatibility.md.

Source: github.com/cloudevents/conformance, `features/http-protocol-binding.feature` and
`yaml/v1.0/v1_minimum.yaml`.
"""

from __future__ import annotations

from datetime import UTC, datetime

import msgspec
import pytest

from kgents_common import envelope, http_binding
from kgents_common.errors import EnvelopeError

NOW = datetime(2026, 11, 25, 12, tzinfo=UTC)
HEADERS = {
    "ce-specversion": "1.0",
    "ce-type": "com.example.someevent",
    "ce-time": "2018-04-05T03:56:24Z",
    "ce-id": "1234-1234-1234",
    "ce-source": "/mycontext/subcontext",
}
DATA = {"message": "Hello World!"}


def shown(event: envelope.Envelope) -> tuple[str, str, str, str, object]:
    return event.id, event.type, event.source, event.time.isoformat(), msgspec.json.decode(event.data)


EXPECTED = ("1234-1234-1234", HEADERS["ce-type"], HEADERS["ce-source"], "2018-04-05T03:56:24+00:00", DATA)


@pytest.mark.parametrize("content_type", ["application/json", "application/json; charset=utf-8"])
def test_binary_content_mode(content_type: str) -> None:
    headers = {**HEADERS, "content-type": content_type}
    event = envelope.read_binary(headers, msgspec.json.encode(DATA), tenant="acme", now=NOW)
    assert shown(event) == EXPECTED


@pytest.mark.parametrize(
    "content_type", ["application/cloudevents+json", "application/cloudevents+json; charset=utf-8"]
)
def test_structured_content_mode(content_type: str) -> None:
    assert http_binding.media_type(content_type) == envelope.STRUCTURED
    attributes = {name.removeprefix("ce-"): value for name, value in HEADERS.items()}
    body = msgspec.json.encode({**attributes, "datacontenttype": "application/json", "data": DATA})
    assert shown(envelope.read(body, tenant="acme", now=NOW)) == EXPECTED


@pytest.mark.parametrize(
    ("number", "content_type", "data", "is_taken"),
    [
        (1, "text/plain; charset=us-ascii", "Hello, World!", False),
        (2, "text/plain; charset=utf-8", "Hello, 🌎!", False),
        (3, "application/json; charset=utf-8", '"Hello, 🌎!"', False),
        (4, "application/json; charset=utf-8", '{"msg":"Hello, 🌎!"}', True),
        (5, "application/json; charset=utf-8", '["Hello","🌎!"]', False),
        (6, "application/xml; charset=utf-8", "<msg>Hello, 🌎!</msg>", False),
    ],
)
def test_the_minimum_of_each_kind_of_data(number: int, content_type: str, data: str, is_taken: bool) -> None:
    """Rule: data is a JSON object, as OpenMeter has it; anything else is refused by its field."""
    headers = {
        "ce-specversion": "1.0",
        "ce-type": "io.cloudevents.minimum",
        "ce-id": f"conformance-{number:04}",
        "ce-source": "//github.com/cloudevents/cloudeventsconformance/yaml/v1.yaml",
        "content-type": content_type,
    }
    if is_taken:
        event = envelope.read_binary(headers, data.encode(), tenant="acme", now=NOW)
        assert msgspec.json.decode(event.data) == msgspec.json.decode(data)
        return
    with pytest.raises(EnvelopeError) as refused:
        envelope.read_binary(headers, data.encode(), tenant="acme", now=NOW)
    assert {violation.field for violation in refused.value.violations} <= {"data", "datacontenttype"}
