"""pytest fixtures for the stand-in: one a session, without events, meters and faults for each test.

A test module asks for them with `pytest_plugins = ["kgents_devstack.openmeter.fixtures"]`.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from kgents_devstack.openmeter.process import OpenMeterStandIn


@pytest.fixture(scope="session")
def openmeter_server(session_directory: Path) -> Iterator[OpenMeterStandIn]:
    """The session's stand-in, which asks for a token."""
    with OpenMeterStandIn(session_directory / "openmeter", token="om_for_tests") as server:
        yield server


@pytest.fixture
def openmeter_http(openmeter_server: OpenMeterStandIn) -> Iterator[httpx.Client]:
    """A client of it that presents the token."""
    with httpx.Client(
        base_url=openmeter_server.url,
        headers={"authorization": f"Bearer {openmeter_server.token}"},
        timeout=30,
        trust_env=False,
    ) as client:
        yield client


@pytest.fixture
def openmeter(openmeter_server: OpenMeterStandIn, openmeter_http: httpx.Client) -> OpenMeterStandIn:
    """The stand-in with nothing in it."""
    openmeter_server.clear_faults()
    openmeter_server.clear_events()
    for meter in openmeter_http.get("/api/v1/meters").json():
        openmeter_http.delete(f"/api/v1/meters/{meter['id']}").raise_for_status()
    return openmeter_server
