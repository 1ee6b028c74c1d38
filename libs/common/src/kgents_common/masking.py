"""Connection strings without their secrets: URLs, their parameters, and key=value forms."""

from __future__ import annotations

import re
from urllib.parse import unquote

MASK = "**********"

_SECRET_NAME = re.compile(r"pass|pwd|secret|token|key|cred|auth|sig|session", re.IGNORECASE)
_USER = re.compile(r"[A-Za-z0-9._+-]+(?=:)")
# `name=value` in a query, a fragment, a cookie or a libpq connection string; a value may be quoted.
_PAIR = re.compile(r"""([^\s?&#;,=]+)(\s*=\s*)('(?:[^'\\]|\\.)*'|"(?:[^"\\]|\\.)*"|[^\s&#;]*)""")


def masked(text: str) -> str:
    """The text with every secret replaced.

    Those are credentials before an @ (a user's name stays, a lone token does not), and the values of
    parameters whose names speak of a secret. It errs on the side of hiding: what follows a scheme up to the
    last @ counts as credentials.
    """
    scheme, separator, rest = text.partition("://")
    if separator and "@" in rest:
        credentials, _, place = rest.rpartition("@")
        user = _USER.match(credentials)
        rest = f"{user[0]}:{MASK}@{place}" if user else f"{MASK}@{place}"
    return scheme + separator + _PAIR.sub(_pair, rest) if separator else _PAIR.sub(_pair, text)


def _pair(found: re.Match[str]) -> str:
    if not _SECRET_NAME.search(unquote(found[1])):
        return found[0]
    return f"{found[1]}{found[2]}{MASK}"
