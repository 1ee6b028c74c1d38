"""Boards as Grafana's JSON, through Grafana's own builders; what is on them is decided elsewhere."""

from __future__ import annotations

from grafana_foundation_sdk.builders import common, dashboard, prometheus, stat, timeseries
from grafana_foundation_sdk.cog.encoder import JSONEncoder
from grafana_foundation_sdk.models.common import (
    GraphThresholdsStyleMode,
    LegendDisplayMode,
    LegendPlacement,
    TooltipDisplayMode,
)
from grafana_foundation_sdk.models.dashboard import (
    DashboardCursorSync,
    DashboardLinkType,
    DataSourceRef,
    Threshold,
    ThresholdsMode,
    VariableOption,
)

from kgents_observability import runbooks
from kgents_observability.dashboards.panels import Board, Panel, Shape

DATA_SOURCE = DataSourceRef(type_val="prometheus", uid="${datasource}")
TAG = "kgents"
HEIGHT = 8
NUMBER_HEIGHT = 5


def as_json(board: Board) -> str:
    """The dashboard, sorted and indented, so that a change is seen as one."""
    built = (
        dashboard.Dashboard(board.title)
        .uid(board.uid)
        .description(board.description)
        .tags([TAG])
        .timezone("utc")
        .refresh("30s")
        .time("now-6h", "now")
        .readonly()
        .tooltip(DashboardCursorSync.CROSSHAIR)
        .with_variable(
            dashboard.DatasourceVariable("datasource")
            .label("Prometheus")
            .type("prometheus")
            .current(VariableOption(selected=True, text="Prometheus", value="prometheus"))
        )
        .link(
            dashboard.DashboardLink("The other dashboards")
            .type(DashboardLinkType.DASHBOARDS)
            .tags([TAG])
            .as_dropdown(True)
            .keep_time(True)
        )
    )
    number = 0
    for row in board.rows:
        built = built.with_row(dashboard.Row(row.title))
        for panel in row.panels:
            number += 1
            built = built.with_panel(_panel(panel, number))
    return JSONEncoder(sort_keys=True, indent=2).encode(built.build()) + "\n"


def _panel(panel: Panel, number: int) -> timeseries.Panel | stat.Panel:
    made = _lines(panel) if panel.shape is Shape.LINES else _number(panel)
    link = dashboard.DashboardLink("Runbook").url(runbooks.link(*panel.runbook)).target_blank(True)
    made = (
        made.id(number)
        .title(panel.title)
        .description(panel.description)
        .unit(panel.unit)
        .datasource(DATA_SOURCE)
        .links([link])
        .span(panel.width)
    )
    for index, query in enumerate(panel.queries):
        asked = prometheus.Dataquery().expr(query.expr).ref_id(chr(ord("A") + index)).datasource(DATA_SOURCE)
        asked = asked.legend_format(query.legend or "__auto")
        if panel.shape is Shape.NUMBER:
            asked = asked.instant()
        else:
            asked = asked.range().exemplar(panel.has_exemplars)
        made = made.with_target(asked)
    if panel.alarming is not None:
        made = made.thresholds(_thresholds(panel.alarming, is_low_bad=panel.is_low_bad))
    return made


def _lines(panel: Panel) -> timeseries.Panel:
    legend = (
        common.VizLegendOptions()
        .show_legend(True)
        .display_mode(LegendDisplayMode.LIST)
        .placement(LegendPlacement.BOTTOM)
    )
    made = (
        timeseries.Panel()
        .height(HEIGHT)
        .min(0)
        .fill_opacity(10)
        .line_width(1)
        .legend(legend)
        .tooltip(common.VizTooltipOptions().mode(TooltipDisplayMode.MULTI))
    )
    if panel.alarming is not None:
        made = made.thresholds_style(
            common.GraphThresholdsStyleConfig().mode(GraphThresholdsStyleMode.DASHED)
        )
    return made


def _number(_: Panel) -> stat.Panel:
    reduced = common.ReduceDataOptions().calcs(["lastNotNull"])
    return stat.Panel().height(NUMBER_HEIGHT).reduce_options(reduced).no_value("none yet")


def _thresholds(alarming: float, *, is_low_bad: bool) -> dashboard.ThresholdsConfig:
    below, above = ("red", "green") if is_low_bad else ("green", "red")
    return (
        dashboard.ThresholdsConfig()
        .mode(ThresholdsMode.ABSOLUTE)
        .steps([Threshold(color=below, value=None), Threshold(color=above, value=alarming)])
    )
