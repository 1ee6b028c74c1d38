"""An error of Postgres is the server's or the event's: nobody's event pays for the server's state."""

from __future__ import annotations

import psycopg
import pytest
from psycopg_pool import PoolTimeout
from pydantic import TypeAdapter, ValidationError

from kgents_common.database import DatabaseUrl, transient_errors
from kgents_common.errors import TransientError

OF_THE_SERVER = (
    "08006", "25006", "25P03", "28P01", "3F000", "40001", "40P01", "42501", "42703", "42883", "42P01",
    "53100", "53200", "53300", "55P03", "57014", "57P01", "58030", "XX001", "XX002",
)  # fmt: skip
OF_THE_EVENT = ("22003", "22021", "22P05", "23505", "23514", "54000", "54001", "XX000")


@pytest.mark.parametrize("state", OF_THE_SERVER)
def test_the_servers_state_is_waited_out(state: str) -> None:
    """Rule: also a read-only server, a transaction ended for its age, a table that is not there yet (P4)."""
    with pytest.raises(TransientError, match="postgres: "), transient_errors():
        raise psycopg.errors.lookup(state)("of Postgres")


@pytest.mark.parametrize("state", OF_THE_EVENT)
def test_what_cannot_be_stored_is_told_apart(state: str) -> None:
    """Rule: an event that can never be stored holds up nobody: also one that is beyond a limit (P0)."""
    with pytest.raises(psycopg.errors.lookup(state)), transient_errors():
        raise psycopg.errors.lookup(state)("of Postgres")


@pytest.mark.parametrize("error", [PoolTimeout("none"), psycopg.InterfaceError("closed")])
def test_what_no_server_said_is_waited_out(error: Exception) -> None:
    """Rule: no connection, or a lost one."""
    with pytest.raises(TransientError), transient_errors():
        raise error


def test_a_url_that_is_none_is_told_at_the_start_and_never_repeated() -> None:
    """Rule: a clear line in place of a traceback, and without what may be a password."""
    adapter: TypeAdapter[str] = TypeAdapter(DatabaseUrl)
    assert adapter.validate_python("postgresql://a:b@127.0.0.1:5432/kgents?sslmode=require")
    with pytest.raises(ValidationError) as raised:
        adapter.validate_python("hunter2")
    assert [e["msg"] for e in raised.value.errors()] == [
        "Value error, no connection URL: postgresql://user:password@host:5432/name"
    ]
