"""CloudEvents' HTTP binding: attributes from `ce-` headers, and which content types are JSON.

It checks no event.

Source of the rules: CloudEvents HTTP binding 1.0.2 section 3.1.3.2 (header values) and RFC 9110 sections
5.6.4 (quoted strings) and 8.3 (media types).
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from email.message import Message
from urllib.parse import unquote_to_bytes

from kgents_common.errors import EnvelopeError, Violation

JSON_RULE = "'application/json', whose charset can only be utf-8"

_QUOTED = re.compile(r'"((?:[^"\\]|\\.)*)"')
_ESCAPE = re.compile(r"\\(.)")


def attributes(headers: Mapping[str, str]) -> dict[str, str]:
    """The attributes that `ce-` headers carry; `headers` has lower-case names and values decoded as latin-1.

    A value in double quotes is unescaped, then every value is percent-decoded once and is UTF-8.

    Raises:
        EnvelopeError: Naming every attribute whose value is not such a text.
    """
    found: dict[str, str] = {}
    wrong: list[Violation] = []
    for name, value in headers.items():
        if not name.startswith("ce-"):
            continue
        try:
            found[name[3:]] = decoded(value)
        except ValueError as error:
            wrong.append(Violation(name[3:][:64], str(error)))
    if wrong:
        raise EnvelopeError(wrong)
    return found


def decoded(value: str) -> str:
    """One header's value as text.

    Raises:
        ValueError: It is not ASCII, or begins a quoted string that does not end with it, or is not UTF-8 once
            it is percent-decoded: else two values could become one identity.
    """
    if not value.isascii():
        raise ValueError("must be ASCII: other characters are percent-encoded as UTF-8")
    if value.startswith('"'):
        quoted = _QUOTED.fullmatch(value)
        if quoted is None:
            raise ValueError("must end the quoted string that it begins")
        value = _ESCAPE.sub(r"\1", quoted[1])
    try:
        return unquote_to_bytes(value).decode()
    except UnicodeDecodeError:
        raise ValueError("must be UTF-8 once it is percent-decoded") from None


def media_type(value: str) -> str:
    """The type and subtype of a content type, without parameters, in lower case."""
    return value.partition(";")[0].strip().lower()


def is_json(value: str) -> bool:
    """Whether a content type is JSON as we read it, in UTF-8."""
    if media_type(value) != "application/json":
        return False
    parsed = Message()
    parsed["content-type"] = value
    charset = parsed.get_param("charset", "utf-8")
    return isinstance(charset, str) and charset.lower() in ("utf-8", "utf8", "us-ascii")
