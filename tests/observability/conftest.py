"""Where the observability files are, and the programs that read them."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import yaml

from kgents_devstack.stack import EVERYTHING, Stack, StackOptions
from kgents_observability.rendering import HOME

ROOT = HOME.parents[1]
RULES = HOME / "prometheus" / "rules"
RULE_TESTS = HOME / "prometheus" / "tests"
RUNBOOKS = ROOT / "docs" / "runbooks"


@dataclass(frozen=True)
class Rule:
    """One alerting or recording rule as its file has it."""

    group: str
    body: dict[str, Any]

    @property
    def name(self) -> str:
        return str(self.body.get("alert") or self.body["record"])

    @property
    def is_alert(self) -> bool:
        return "alert" in self.body

    @property
    def expr(self) -> str:
        return str(self.body["expr"])


@cache
def all_rules() -> tuple[Rule, ...]:
    return tuple(
        Rule(path.stem, body)
        for path in sorted(RULES.glob("*.yaml"))
        for group in yaml.safe_load(path.read_text())["groups"]
        for body in group["rules"]
    )


def program(name: str) -> str:
    """The path of a program that is no Python package; the test is skipped where it is not installed."""
    found = shutil.which(name)
    if found is None:
        pytest.skip(f"{name} is not installed (Debian: apt-get install prometheus)")
    return found


@pytest.fixture(scope="session")
def stack() -> Iterator[Stack]:
    """Everything, running."""
    directory = Path(tempfile.mkdtemp(prefix="kgents-observability-"))
    try:
        with Stack(directory, StackOptions(services=EVERYTHING)) as running:
            yield running
    finally:
        shutil.rmtree(directory, ignore_errors=True)
