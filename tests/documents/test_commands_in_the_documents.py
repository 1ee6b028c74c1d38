"""What the documents tell somebody to type is what the programs take."""

from __future__ import annotations

import argparse
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from kgents_api.handlers import commands as of_api
from kgents_backup.handlers.command import program as of_backup
from kgents_billing.handlers import commands as of_billing
from kgents_devstack.__main__ import make_parser
from kgents_metering.handlers import commands as of_metering

ROOT = Path(__file__).resolve().parents[2]
PARSERS = {
    "api": of_api._parser(),
    "metering": of_metering._parser(),
    "billing": of_billing._parser(),
    "backup": of_backup._parser(),
    "devstack": make_parser(),
}
PROGRAM = re.compile(r"(?:kgents-|python -m kgents_)(api|metering|billing|backup|devstack) +([^\n`|;()\"]+)")
# The changelog tells of releases that were.
DOCUMENTS = sorted(
    str(path.relative_to(ROOT))
    for pattern in (
        "README.md",
        "CONTRIBUTING.md",
        "docs/**/*.md",
        "deploy/observability/prometheus/rules/*.yaml",
    )
    for path in ROOT.glob(pattern)
)


def printed(text: str) -> Iterator[tuple[str, list[str]]]:
    """Program and words of each command, in a code span or block; what may be left out is there as well."""
    for block in re.findall(r"```.*?```|`[^`\n]+`", text, flags=re.DOTALL):
        for found in PROGRAM.finditer(block):
            words = re.sub(r" #.*|[\[\]\\]|['\"]", "", found.group(2)).split()
            yield found.group(1), words


def fault(parser: argparse.ArgumentParser, words: list[str]) -> str:
    """What of it the program would not take; empty where nothing."""
    if words == ["--check"]:
        return ""  # looked for before there is a command
    options = set(parser._option_string_actions)
    for word in words:
        below = next((a for a in parser._actions if isinstance(a, argparse._SubParsersAction)), None)
        if word.startswith("-"):
            if word.partition("=")[0] not in options:
                return f"no option {word}"
        elif below is not None:
            if word == "…":
                return ""
            if word not in below.choices:
                return f"no command {word}"
            parser = below.choices[word]
            options |= set(parser._option_string_actions)
            if parser.prog.endswith(" operate"):
                service, *rest = words[words.index("operate") + 1 :]
                return fault(PARSERS[service], rest)
    return ""


@pytest.mark.parametrize("name", DOCUMENTS)
def test_every_command_of_a_document_is_one_that_its_program_takes(name: str) -> None:
    """Rule: commands and options exist as they are written."""
    text = (ROOT / name).read_text()
    if name.endswith(".yaml"):
        text = f"```{text}```"
    wrong = [
        (f"{program} {' '.join(w)}", why)
        for program, w in printed(text)
        if (why := fault(PARSERS[program], w))
    ]
    assert wrong == []


def test_a_command_that_no_program_takes_is_found() -> None:
    """Rule: this looks at what is written: a word too many, an option that went away."""
    text = (
        "`kgents-backup restor --dry-run`, `kgents-metering reconcile --days 3`, `kgents-metering dead list`"
    )
    faults = [fault(PARSERS[program], words) for program, words in printed(text)]
    assert faults == ["no command restor", "no option --days", ""]


@pytest.mark.parametrize("name", [name for name in DOCUMENTS if name.endswith(".md")])
def test_every_habit_of_a_document_is_one_of_the_makefile(name: str) -> None:
    """Rule: `make something` is a target."""
    targets = set(re.findall(r"^([a-z0-9.-]+):", (ROOT / "Makefile").read_text(), flags=re.MULTILINE))
    named = re.findall(r"(?:`|^\$ )make ([a-z][a-z0-9.-]*)", (ROOT / name).read_text(), flags=re.MULTILINE)
    assert set(named) <= targets
