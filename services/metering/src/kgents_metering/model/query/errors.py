"""Why a query cannot be answered, for the one who asks."""

from __future__ import annotations

from kgents_common.errors import PermanentError


class QueryError(PermanentError):
    """A query that cannot be answered; `status` is the HTTP status it deserves."""

    def __init__(self, message: str, status: int = 400) -> None:
        super().__init__(message)
        self.status = status
