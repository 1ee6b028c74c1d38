"""The Dockerfile knows every member of the workspace, and is what manifests and `make images` take it for."""

from __future__ import annotations

import re
import tomllib

import pytest

from .rendered import ROOT

TEXT = (ROOT / "Dockerfile").read_text()
SERVICES = ("api", "metering", "billing", "backup")


def test_every_member_s_project_file_is_copied() -> None:
    """Uv reads the lock against all of them: without one, no image can be built."""
    patterns = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["uv"]["workspace"]["members"]
    members = {found.relative_to(ROOT) for p in patterns for found in ROOT.glob(f"{p}/pyproject.toml")}
    ignored = (ROOT / ".dockerignore").read_text().splitlines()

    copied = {
        words[0] for words in (line.split()[1:] for line in TEXT.splitlines() if line.startswith("COPY"))
    }
    for member in members:
        assert str(member) in copied
        assert any(str(member).startswith(line[1:]) for line in ignored if line.startswith("!")), member


@pytest.mark.parametrize("service", SERVICES)
def test_every_service_has_a_target_of_its_own(service: str) -> None:
    """With its own distribution alone."""
    assert f"FROM runtime AS {service}\n" in TEXT
    stage = TEXT.split(f"FROM build AS build-{service}\n")[1].split("FROM runtime")[0]
    assert set(re.findall(r"--package kgents-([a-z]+)", stage)) == {service}
    assert f'ENTRYPOINT ["/app/bin/kgents-{service}"]' in TEXT


def test_uv_is_the_version_that_the_project_pins() -> None:
    """One uv for the developer's environment, the lock file and the images."""
    pinned = re.search(r"UV_VERSION := (\S+)", (ROOT / "Makefile").read_text())

    assert pinned is not None
    assert f"ghcr.io/astral-sh/uv:{pinned.group(1)}\n" in TEXT
