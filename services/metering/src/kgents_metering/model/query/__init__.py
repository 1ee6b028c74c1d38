"""What may be asked of the ledger: parameters, spans, filters; nothing here reads rows."""

from kgents_metering.model.query.errors import QueryError
from kgents_metering.model.query.filters import Filter
from kgents_metering.model.query.query import (
    PARAMETERS,
    REPEATABLE,
    Query,
    body_values,
    parse_query,
    read_span,
)
from kgents_metering.model.query.spans import Span

__all__ = [
    "PARAMETERS",
    "REPEATABLE",
    "Filter",
    "Query",
    "QueryError",
    "Span",
    "body_values",
    "parse_query",
    "read_span",
]
