"""Whose a subscription or a customer is, and was when: read off words in no order; it asks nobody.

A word says that from a second on the thing is somebody's, and may say whose it was until then. Words come in
any order and more than once; what they say together does not depend on that.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from enum import StrEnum

from kgents_billing.model.order import Edge, last_state

# A second after every other.
NOW = 2**62


class Kind(StrEnum):
    """What is owned."""

    SUBSCRIPTION = "subscription"
    CUSTOMER = "customer"


class SaidBy(StrEnum):
    """Who gave a word. An operator's stands above Stripe's from its second on."""

    EVENT = "event"
    OPERATOR = "operator"
    BEFORE = "before"  # what the version before this one knew, without its history


@dataclass(frozen=True, slots=True)
class Word:
    """One word about ownership.

    Attributes:
        second: From when on it is `after`'s, by Stripe's clock.
        before: Whose it was until then; empty where that is not said.
        after: Whose it is; empty where an operator takes a word back.
    """

    kind: Kind
    id: str
    second: int
    after: str
    before: str = ""
    said_by: SaidBy = SaidBy.EVENT

    @property
    def is_move(self) -> bool:
        """Whether it changed hands."""
        return bool(self.before) and self.before != self.after


@dataclass(frozen=True, slots=True)
class Period:
    """Somebody's time with it; `since` and `until` are None where nothing says."""

    tenant: str
    since: int | None
    until: int | None


def assigned_at(words: Iterable[Word], second: int) -> str | None:
    """What an operator said, as of a second; None where nobody did, or took it back."""
    said = [word for word in words if word.said_by is SaidBy.OPERATOR and word.second <= second]
    return max(said, key=lambda word: word.second).after or None if said else None


def owner_at(words: Sequence[Word], second: int) -> str | None:
    """Whose it was at a second: the latest word until then, else what the earliest later one says."""
    said = [word for word in words if word.said_by is not SaidBy.OPERATOR]
    past = [word for word in said if word.second <= second and word.after]
    if past:
        last = max(word.second for word in past)
        return _last_of([word for word in past if word.second == last])
    later = sorted(
        (word for word in said if word.second > second), key=lambda w: (w.second, w.before, w.after)
    )
    moves = [word for word in later if word.is_move]
    if moves:
        return _first_of([word for word in moves if word.second == moves[0].second])
    return later[0].after if later else None


def history(words: Sequence[Word], now: int) -> list[Period]:
    """Who had it when, the first owner first; operators' words count as of their second."""
    marks = sorted({word.second for word in words if word.second <= now})
    if not marks:
        return []
    found: list[tuple[str, int | None]] = []
    for second in (marks[0] - 1, *marks):
        tenant = assigned_at(words, second) or owner_at(words, second)
        if tenant is not None and (not found or found[-1][0] != tenant):
            found.append((tenant, None if second < marks[0] else second))
    ends = [since for _, since in found[1:]]
    return [Period(tenant, since, until) for (tenant, since), until in zip(found, [*ends, None], strict=True)]


def _last_of(words: list[Word]) -> str:
    """Where the moves of one second end; where they do not tell, some rule that knows no order."""
    moves = [Edge("", word.second, word.before, word.after) for word in words if word.is_move]
    return (last_state(moves) if moves else None) or max(word.after for word in words)


def _first_of(moves: list[Word]) -> str:
    """Where the moves of one second begin: where they would end, walked backwards."""
    edges = [Edge("", word.second, word.after, word.before) for word in moves]
    return last_state(edges) or max(word.before for word in moves)
