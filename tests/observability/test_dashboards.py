"""Dashboards are code, say what to do, and read what exists."""

from __future__ import annotations

import json
import re
from typing import Any

import pytest

from kgents_observability import promql, runbooks
from kgents_observability.dashboards import BOARDS, Board
from kgents_observability.dashboards.grafana import as_json
from kgents_observability.inventory import declared

from .conftest import RUNBOOKS, all_rules
from .test_metrics import FROM_SCRAPE, known

PANELS = [(board, panel) for board in BOARDS for row in board.rows for panel in row.panels]
# Grafana's ids of units that are used here.
UNITS = {"s", "short", "none", "bytes", "percentunit", "cps", "reqps", "dateTimeFromNow"}
OF_PROMETHEUS = {
    "ALERTS": {"alertname", "alertstate"},
    "process_resident_memory_bytes": set(),
    "process_cpu_seconds_total": set(),
}
# Metrics of ours that are on no dashboard and in no alert, and why.
UNREAD: dict[str, str] = {
    "kgents_http_requests_total": "workers answer few requests; metering's own figures tell of reads",
    "kgents_http_request_seconds": "the same",
}


def panels_of(board: Board) -> list[dict[str, Any]]:
    """Panels with queries, as Grafana gets them."""
    return [panel for panel in json.loads(as_json(board))["panels"] if panel["type"] != "row"]


def expressions() -> list[str]:
    return [query.expr for _, panel in PANELS for query in panel.queries]


@pytest.mark.parametrize(("board", "panel"), PANELS, ids=[f"{b.uid}-{p.title}" for b, p in PANELS])
def test_a_panel_says_what_to_do_and_reads_what_exists(board: Board, panel: Any) -> None:
    """Rule: unit, description, runbook that exists, `$__rate_interval`, metrics and labels that exist."""
    assert panel.unit in UNITS
    assert len(panel.description) > 15
    assert panel.description.endswith(".")
    group, section = panel.runbook
    assert f"\n## {section}\n" in (RUNBOOKS / f"{group}.md").read_text()
    exist = known() | OF_PROMETHEUS
    for query in panel.queries:
        for window in re.findall(r"(?:rate|deriv)\([^()]*\[(.+?)\]", query.expr):
            assert window == "$__rate_interval"
        for reading in promql.readings(query.expr):
            assert reading.metric in exist, reading.metric
            assert reading.labels <= exist[reading.metric] | FROM_SCRAPE, reading.metric
        available = set().union(*(exist[r.metric] for r in promql.readings(query.expr))) | FROM_SCRAPE
        assert promql.grouping_labels(query.expr) <= available
        assert set(re.findall(r"{{(\w+)}}", query.legend)) <= available


@pytest.mark.parametrize("board", BOARDS, ids=lambda board: board.uid)
def test_grafana_gets_what_it_needs(board: Board) -> None:
    """Rule: dashboard-linter's: one data source variable, ids, a target with a ref and an expression."""
    document = json.loads(as_json(board))
    variables = document["templating"]["list"]
    assert [(v["name"], v["type"], v["query"]) for v in variables] == [
        ("datasource", "datasource", "prometheus")
    ]
    assert document["uid"] == board.uid
    assert document["editable"] is False
    panels = panels_of(board)
    assert len({panel["id"] for panel in panels}) == len(panels)
    for panel in panels:
        assert panel["datasource"]["uid"] == "${datasource}"
        assert panel["links"][0]["url"].startswith(runbooks.BASE_URL)
        assert panel["gridPos"]["w"] > 0
        assert panel["fieldConfig"]["defaults"]["unit"]
        references = [target["refId"] for target in panel["targets"]]
        assert len(set(references)) == len(references)
        assert all(
            target["expr"] and target["datasource"]["uid"] == "${datasource}" for target in panel["targets"]
        )


def test_no_metric_of_ours_goes_unread_unknowingly() -> None:
    """Rule: on a dashboard, in an alert, or listed with a reason, and the list is no longer than that."""
    read = {
        reading.metric
        for expression in [*expressions(), *(rule.expr for rule in all_rules())]
        for reading in promql.readings(expression)
    }
    unread = {metric.name for metric in declared() if not metric.series() & read}
    assert unread == set(UNREAD)
    assert all(UNREAD.values())
