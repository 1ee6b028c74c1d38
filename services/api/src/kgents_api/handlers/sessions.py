"""`POST /v1/sessions` mints a token for one agent from an API key; `DELETE /v1/sessions/{id}` ends it."""

from __future__ import annotations

import re
from datetime import datetime, timedelta
from typing import Annotated, Any, Literal

import msgspec
from msgspec import Meta
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import BaseRoute, Route

from kgents_api.handlers.authentication import Authentication, sessions_unavailable
from kgents_api.handlers.intake import JSON
from kgents_api.handlers.refusal import Refused, described
from kgents_api.handlers.request import address_of, headers_of, media_type, read_body
from kgents_api.model import sessions
from kgents_api.model.sessions import AGENT_PATTERN, Sessions
from kgents_common import subjects
from kgents_common.clock import Clock
from kgents_common.errors import TransientError, Violation

PATH = "/v1/sessions"
SCOPE = "sessions:write"
CURRENT = "current"
MAX_BODY_BYTES = 16 * 1024

_AGENT = re.compile(AGENT_PATTERN.removesuffix("$"))


class NewSession(msgspec.Struct, forbid_unknown_fields=True):
    """What a session is asked to be."""

    agent: Annotated[str, Meta(pattern=AGENT_PATTERN, description="Who the events will be from")]
    ttl_seconds: Annotated[float, Meta(ge=1, le=3600)] = 900
    scopes: Annotated[
        tuple[Literal["events:read", "events:write"], ...] | None,
        Meta(description="Some of the key's; all of these two that it has where absent"),
    ] = None
    tenant: Annotated[
        Annotated[str, Meta(max_length=64)] | None,
        Meta(description="Of which tenant: for a key of several, which must name one"),
    ] = None
    sources: Annotated[
        Annotated[
            tuple[Annotated[str, Meta(min_length=1, max_length=1024)], ...],
            Meta(min_length=1, max_length=100),
        ]
        | None,
        Meta(description="The only sources that its events may have"),
    ] = None


class MintedSession(msgspec.Struct):
    """A session and, this once, its token."""

    id: str
    token: str
    tenant: str
    agent: str
    scopes: tuple[str, ...]
    expires_at: datetime


_DECODER = msgspec.json.Decoder(NewSession)


class SessionDoor:
    """The endpoints."""

    def __init__(self, authentication: Authentication, kept: Sessions, clock: Clock) -> None:
        self._authentication = authentication
        self._sessions = kept
        self._clock = clock

    async def mint(self, request: Request) -> Response:
        """201 and the token."""
        headers = headers_of(request.scope)
        caller = await self._authentication.caller(headers, SCOPE, address=address_of(request.scope))
        asked = _asked(headers, await read_body(request.receive, headers, MAX_BODY_BYTES))
        allowed = caller.scopes & sessions.SCOPES
        scopes = allowed if asked.scopes is None else frozenset(asked.scopes)
        if not scopes or not scopes <= allowed:
            raise Refused(403, "a session cannot have a scope that its key lacks", reason="forbidden")
        tenant = asked.tenant if asked.tenant is not None else caller.tenant
        if not tenant:
            raise _wrong("tenant", "is required with a key of several tenants")
        if not caller.may_be(tenant) or not subjects.is_tenant(tenant):
            raise Refused(403, "these credentials are not of this tenant", reason="foreign_tenant")
        lifetime = timedelta(seconds=asked.ttl_seconds)
        token, session = sessions.mint(
            caller,
            asked.agent,
            scopes,
            self._clock.now() + lifetime,
            tenant=tenant,
            sources=asked.sources or (),
        )
        try:
            await self._sessions.keep(session, lifetime)
        except TransientError:
            raise sessions_unavailable() from None
        minted = MintedSession(
            session.id, token, session.tenant, session.agent, session.scopes, session.expires_at
        )
        return Response(
            msgspec.json.encode(minted), 201, headers={"cache-control": "no-store"}, media_type=JSON
        )

    async def end(self, request: Request) -> Response:
        """204 once the session is over; its own token may end it, and its tenant's keys."""
        headers = headers_of(request.scope)
        caller = await self._authentication.identify(headers, address=address_of(request.scope))
        asked: str = request.path_params["id"]
        session_id = caller.credential if asked == CURRENT else asked
        if session_id != caller.credential and not caller.may(SCOPE):
            raise Refused(403, f"these credentials lack the scope {SCOPE}", reason="forbidden")
        try:
            found = await self._sessions.find(session_id) if sessions.is_id(session_id) else None
            if found is None or not caller.may_be(found.tenant):
                raise Refused(404, "there is no such session, or none any more", reason="no_session")
            await self._sessions.end(session_id)
        except TransientError:
            raise sessions_unavailable() from None
        return Response(status_code=204)


def _asked(headers: dict[str, str], body: bytes) -> NewSession:
    """The request's wish.

    Raises:
        Refused: 400 or 415.
    """
    if media_type(headers) != JSON:
        raise Refused(415, f"the content type must be {JSON}", reason="unsupported_type")
    try:
        asked = _DECODER.decode(body)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        rule, _, place = str(error).partition(" - at `$.")
        raise _wrong(place.rstrip("`"), rule) from None
    if not _AGENT.fullmatch(asked.agent):  # `$` lets a line feed pass
        raise _wrong("agent", f"must match {AGENT_PATTERN}")
    return asked


def _wrong(field: str, rule: str) -> Refused:
    return Refused(400, "no session was made", reason="invalid", violations=[Violation(field, rule)])


def routes(door: SessionDoor) -> list[BaseRoute]:
    """Both endpoints."""
    return [
        Route(PATH, door.mint, methods=["POST"]),
        Route(PATH + "/{id}", door.end, methods=["DELETE"]),
    ]


def openapi_paths() -> dict[str, Any]:
    """Sessions in the OpenAPI document."""
    _, schemas = msgspec.json.schema_components([NewSession, MintedSession])
    security: list[dict[str, list[str]]] = [{"bearer": []}, {"key": []}]
    unavailable = "Redis is away, and with it the sessions: API keys still work."
    guessing = "Too many unknown credentials from this address."
    return {
        PATH: {
            "post": {
                "operationId": "mintSession",
                "summary": "Mint a session for an agent",
                "description": "A token that publishes and follows events until it expires. Its events carry"
                " the agent's name as the attribute agent.",
                "security": security,
                "requestBody": {"required": True, "content": {JSON: {"schema": schemas["NewSession"]}}},
                "responses": {
                    "201": {
                        "description": "The session; its token is shown this once.",
                        "content": {JSON: {"schema": schemas["MintedSession"]}},
                    },
                    **described(
                        {
                            "400": "A field is wrong.",
                            "401": "No credentials, or unknown ones.",
                            "403": f"The credentials lack the scope {SCOPE}, or one that is asked for.",
                            "413": "The body is too large.",
                            "415": "A content type or encoding that is not taken.",
                            "429": guessing,
                            "503": unavailable,
                        }
                    ),
                },
            }
        },
        PATH + "/{id}": {
            "delete": {
                "operationId": "endSession",
                "summary": "End a session",
                "description": f"By its id, or {CURRENT} for the session whose token is shown.",
                "security": security,
                "parameters": [{"name": "id", "in": "path", "required": True, "schema": {"type": "string"}}],
                "responses": {
                    "204": {"description": "It is over."},
                    **described(
                        {
                            "401": "No credentials, or unknown ones.",
                            "403": f"Another's session, and the credentials lack the scope {SCOPE}.",
                            "404": "There is no such session of your tenant, or none any more.",
                            "429": guessing,
                            "503": unavailable,
                        }
                    ),
                },
            }
        },
    }
