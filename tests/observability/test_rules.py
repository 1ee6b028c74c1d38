"""Alerts fire when they should and only then, and each leads to a runbook that says what to do."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

import pytest
import yaml

from kgents_observability import promql, runbooks
from kgents_observability.rendering import HOME, rendered

from .conftest import RULE_TESTS, RULES, RUNBOOKS, Rule, all_rules, program

ALERTS = [rule for rule in all_rules() if rule.is_alert]
NAME = re.compile(r'alertname="(\w+)"')
# It always fires: that is what it is for.
NEVER_SILENT = {"Watchdog"}


def run(*command: str, cwd: Path | None = None) -> subprocess.CompletedProcess[str]:
    return subprocess.run(command, capture_output=True, text=True, check=False, cwd=cwd)


def test_what_is_rendered_is_what_the_code_says() -> None:
    """Rule: `python -m kgents_observability render` changes nothing."""
    stale = [name for name, text in rendered().items() if (HOME / name).read_text() != text]
    assert not stale, "run `python -m kgents_observability render`"


def test_promtool_takes_the_rules() -> None:
    """Rule: Prometheus loads every file."""
    checked = run(program("promtool"), "check", "rules", *map(str, sorted(RULES.glob("*.yaml"))))
    assert checked.returncode == 0, checked.stdout + checked.stderr


@pytest.mark.parametrize("path", sorted(RULE_TESTS.glob("*.yaml")), ids=lambda path: path.stem)
def test_each_alert_fires_and_stays_silent_as_its_cases_say(path: Path) -> None:
    """Rule: `promtool test rules` passes."""
    tested = run(program("promtool"), "test", "rules", path.name, cwd=path.parent)
    assert tested.returncode == 0, tested.stdout + tested.stderr


def test_every_alert_has_a_case_that_fires_and_one_that_does_not() -> None:
    """Rule: promtool passes a misspelt alert that is expected to be silent, so names are compared here."""
    fires: set[str] = set()
    silent: set[str] = set()
    for path in sorted(RULE_TESTS.glob("*.yaml")):
        for case in yaml.safe_load(path.read_text())["tests"]:
            for expectation in case["promql_expr_test"]:
                for name in NAME.findall(expectation["expr"]):
                    (fires if expectation["exp_samples"] else silent).add(name)
    names = {rule.name for rule in ALERTS}
    assert fires | silent <= names
    assert fires == names
    assert silent == names - NEVER_SILENT


@pytest.mark.long
def test_annotations_are_rendered_without_a_fault(tmp_path: Path) -> None:
    """Rule: no text an operator reads at night ends in a template error or in a label that is not there."""
    promtool = program("promtool")
    for path in sorted(RULE_TESTS.glob("*.yaml")):
        document = yaml.safe_load(path.read_text())
        document["rule_files"] = [str(RULES / Path(name).name) for name in document["rule_files"]]
        for case in document["tests"]:
            # Expected to be silent, promtool shows what fired instead, with its annotations.
            case["alert_rule_test"] = [
                {"eval_time": one["eval_time"], "alertname": name, "exp_alerts": []}
                for one in case.pop("promql_expr_test")
                if one["exp_samples"]
                for name in NAME.findall(one["expr"])
            ]
        document["tests"] = [case for case in document["tests"] if case["alert_rule_test"]]
        (tmp_path / path.name).write_text(yaml.safe_dump(document))
    tested = run(promtool, "test", "rules", *map(str, sorted(tmp_path.glob("*.yaml"))))
    shown = tested.stdout + tested.stderr
    annotated = {rule.name for rule in ALERTS if f'alertname="{rule.name}"' in shown}
    assert annotated == {rule.name for rule in ALERTS}
    assert "error expanding template" not in shown
    assert "<no value>" not in shown
    assert "of  " not in shown


@pytest.mark.parametrize("rule", ALERTS, ids=lambda rule: rule.name)
def test_an_alert_says_who_what_and_where_to_read(rule: Rule) -> None:
    """Rule: severity, service, a summary, a first step, and a section of a runbook that exists."""
    assert rule.body["labels"]["severity"] in {"critical", "warning", "none"}
    assert rule.body["labels"]["service"]
    notes = rule.body["annotations"]
    assert set(notes) == {"summary", "description", "runbook_url"}
    assert not notes["summary"].endswith(".")
    assert notes["description"].endswith(".")
    assert notes["runbook_url"] == runbooks.link(rule.group, rule.name)
    promql.parse(rule.expr)


@pytest.mark.parametrize("group", sorted({rule.group for rule in ALERTS}))
def test_a_runbook_has_a_section_an_alert_and_nothing_else(group: str) -> None:
    """Rule: what it means, how to look, what to do, how to know that it is over."""
    text = (RUNBOOKS / f"{group}.md").read_text()
    sections = dict(re.findall(r"^## (.+?)\n(.*?)(?=^## |\Z)", text, re.DOTALL | re.MULTILINE))
    assert list(sections) == [rule.name for rule in ALERTS if rule.group == group]
    for name, section in sections.items():
        parts = re.findall(r"^\*\*(\w+)\*\* ?", section, re.MULTILINE)
        assert parts == ["Means", "Look", "Do", "Over"], name
