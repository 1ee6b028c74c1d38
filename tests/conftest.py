"""What every test may ask for: real servers, and Hypothesis without a deadline (machines are shared)."""

from __future__ import annotations

import logging
import ssl
from collections.abc import Iterator
from typing import Any

import httpx
import pytest
import structlog
from hypothesis import settings

pytest_plugins = ["kgents_devstack.fixtures"]

settings.register_profile("shared-machine", deadline=None)
settings.load_profile("shared-machine")


@pytest.fixture(scope="session", autouse=True)
def certificates_are_read_once() -> Iterator[None]:
    """Each client of httpx reads the machine's certificates, also where nothing is encrypted: a thirtieth of
    a second of a core, for each question of a test that waits for an answer."""
    read = httpx.create_ssl_context
    ours = read()

    def create_ssl_context(verify: Any = True, cert: Any = None, trust_env: bool = True) -> ssl.SSLContext:
        return ours if verify is True and cert is None else read(verify, cert, trust_env)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("httpx._transports.default.create_ssl_context", create_ssl_context)
        yield


@pytest.fixture(autouse=True)
def logs_as_they_were(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A command that a test runs in this process sets logs up for streams that end with the test: whatever
    logs afterwards in the same process must not write there."""
    configure = structlog.configure

    def configured(**options: Any) -> None:
        configure(**{**options, "cache_logger_on_first_use": False})

    monkeypatch.setattr(structlog, "configure", configured)
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level
    yield
    structlog.reset_defaults()
    root.handlers[:] = handlers
    root.setLevel(level)
