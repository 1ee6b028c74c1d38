"""The parameters of a read: each known by name, each a text that can be compared; meaning comes later."""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping, Sequence
from datetime import datetime
from difflib import get_close_matches
from urllib.parse import parse_qsl

from kgents_common import rfc3339
from kgents_metering.model.query.errors import QueryError

Parameters = Mapping[str, Sequence[str]]

# `filterGroupBy[model]`: a parameter for each key, as OpenAPI's deepObject style writes it.
_KEYED = re.compile(r"(\w+)\[(.*)\]", re.DOTALL)
_MAX_PARAMETERS = 1000


def from_query_string(raw: bytes, known: Collection[str], *, repeatable: Collection[str] = ()) -> Parameters:
    """The parameters of a query string, by name, in order.

    Args:
        known: Names; `name[]` for one that takes a key in brackets.
        repeatable: Those that may be given more than once; keyed ones always may.

    Raises:
        QueryError: 400: a name is not known (with the nearest that is), a text cannot be, or one parameter of
            two values would be one of them by chance.
    """
    try:
        pairs = parse_qsl(
            raw.decode("ascii"), keep_blank_values=True, errors="strict", max_num_fields=_MAX_PARAMETERS
        )
    except ValueError:  # UnicodeDecodeError is one
        raise QueryError("the parameters must be percent-encoded UTF-8, at most 1,000 of them") from None
    found: dict[str, list[str]] = {}
    for name, value in pairs:
        check_known(name, known)
        found.setdefault(name, []).append(check_text(value, name))
    for name, values in found.items():
        if len(values) > 1 and name not in repeatable and not _KEYED.fullmatch(name):
            raise QueryError(f"{name}: given {len(values)} times; it takes one value")
    return found


def check_known(name: str, known: Collection[str], what: str = "parameter") -> None:
    """Whether there is a parameter of this name.

    Raises:
        QueryError: 400: it is none; an answer that ignored it would be to another question.
    """
    keyed = _KEYED.fullmatch(name)
    if name in known or (keyed is not None and f"{keyed[1]}[]" in known):
        return
    base, key = (keyed[1], f"[{keyed[2]}]") if keyed else (name, "")
    names = {each.lower(): each for each in known}
    wanted = f"{base}[]" if keyed else base
    near = get_close_matches(wanted.lower(), names, n=1, cutoff=0.6)
    shown = f"unknown {what} {name[:100]!a}"
    if not near:
        raise QueryError(f"{shown}: there are {', '.join(sorted(known)) or 'none'}")
    nearest = names[near[0]]
    meant = nearest.removesuffix("[]") + key if nearest.endswith("[]") else nearest
    raise QueryError(f"{shown}: did you mean {meant if meant.isprintable() else nearest}?")


def check_text(value: str, name: str) -> str:
    """The text itself.

    Raises:
        QueryError: 400: it has a NUL or half of a surrogate pair, which no stored text has.
    """
    if "\x00" in value or any("\ud800" <= character <= "\udfff" for character in value):
        raise QueryError(f"{name[:100]!a}: must not contain NUL or lone surrogates")
    return value


def one(values: Parameters, name: str) -> str | None:
    """The value of a parameter that is given at most once."""
    found = values.get(name) or ()
    return found[-1] if found else None


def moment(values: Parameters, name: str) -> datetime | None:
    """A date and time, whole seconds, in UTC: what is beyond is cut off, as it is where events are read.

    Raises:
        QueryError: 400.
    """
    text = one(values, name)
    if text is None:
        return None
    try:
        return rfc3339.moment(text).replace(microsecond=0)
    except ValueError as error:
        raise QueryError(f"{name}: {error}") from None


def number(values: Parameters, name: str, default: int, largest: int) -> int:
    """A whole number from 1.

    Raises:
        QueryError: 400.
    """
    text = one(values, name)
    if text is None:
        return default
    if not (text.isascii() and text.isdecimal()) or len(text) > 9 or not 1 <= int(text) <= largest:
        raise QueryError(f"{name}: must be 1 to {largest}")
    return int(text)


def choice(values: Parameters, name: str, choices: Sequence[str], default: str) -> str:
    """One of a few words.

    Raises:
        QueryError: 400.
    """
    text = one(values, name)
    if text is None:
        return default
    if text not in choices:
        raise QueryError(f"{name}: must be one of {', '.join(choices)}")
    return text


def its_own(values: Parameters, tenant: str) -> None:
    """Refuse a question about another tenant; a key of several has been asked for one of its own already.

    Raises:
        QueryError: 403, another tenant's.
    """
    if one(values, "subject") not in (None, tenant):
        raise QueryError("subject: another tenant's", status=403)
