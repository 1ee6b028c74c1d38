"""Whose usage a request may read: from its API key and, for a key of several tenants, its `subject`."""

from __future__ import annotations

from collections.abc import Callable

import msgspec
from starlette.requests import Request

from kgents_common.keyring import KeyRecord
from kgents_common.keyring.reading import SUBJECT, FindsKeys, record_of
from kgents_metering.model.query.listing import named_in

SCOPE = "usage:read"


def record_by_key(keyring: FindsKeys) -> Callable[[Request], KeyRecord]:
    """A function from a request to the record of its key; it raises what `record_of` does."""
    return lambda request: record_of(keyring, request, SCOPE)


def named_subjects(request: Request, body: bytes) -> list[str]:
    """The subjects that a question names: in its parameters, in its filter, or in the body of a POST.

    What is no list of texts names nobody; that the question is wrong is said where it is read.
    """
    if request.method != "POST":
        parameters = request.query_params
        return [*parameters.getlist(SUBJECT), *named_in(parameters.get("filter", "{}"))]
    try:
        named = msgspec.json.decode(body, type=dict[str, object]).get(SUBJECT)
    except (msgspec.DecodeError, RecursionError, UnicodeDecodeError):
        return []
    items = named if isinstance(named, list) else [named]
    return [item for item in items if isinstance(item, str)]
