"""What a read gives back, how much it may cost, and why it may be refused."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime
from decimal import Decimal
from typing import NamedTuple

import psycopg

from kgents_common.database import transient_errors
from kgents_common.errors import TransientError
from kgents_metering.model.query import QueryError

NARROW = "narrow it with from and to, a larger windowSize, fewer groupBy keys, or filters"


@dataclass(frozen=True, slots=True)
class ReadLimits:
    """What one read may cost.

    Attributes:
        rows: Rows of an answer.
        edge_events: Events measured again because a query begins or ends within a minute.
        statement_seconds: What a statement may take; it is set on the pool, and said in the refusal.
    """

    rows: int = 500_000
    edge_events: int = 1_000_000
    statement_seconds: float = 10


class Row(NamedTuple):
    """One value: of a window and a group; a tuple, as an answer may have half a million.

    Attributes:
        value: Without trailing zeros.
    """

    start: datetime
    end: datetime
    groups: Mapping[str, str]
    value: Decimal
    tenant: str


@dataclass(frozen=True, slots=True)
class Answer:
    """The rows of a query, a few hundred at a time; `total` is known before the first."""

    total: int
    chunks: AsyncIterator[list[Row]]


class BackfillingError(TransientError):
    """The meter is new and its history is still being measured."""


@contextmanager
def read_errors(limits: ReadLimits) -> Iterator[None]:
    """Postgres's errors as a caller's or an operator's.

    Raises:
        QueryError: 422: the statement took too long.
        TransientError: Postgres is away.
    """
    try:
        with transient_errors():
            yield
    except TransientError as error:
        if isinstance(error.__cause__, psycopg.errors.QueryCanceled):
            seconds = limits.statement_seconds
            raise QueryError(f"the query took more than {seconds:g} s: {NARROW}", 422) from error
        raise
