"""The metrics that our code declares, read from its source: each name with its labels; it runs nothing.

An exported metric shows its labels only once something was counted; the source shows them always.
"""

from __future__ import annotations

import ast
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from importlib.util import find_spec
from pathlib import Path

PACKAGES = ("kgents_common", "kgents_api", "kgents_metering", "kgents_billing", "kgents_backup")
KINDS = frozenset({"Counter", "Gauge", "Histogram", "Summary"})
FAMILIES = frozenset({"CounterMetricFamily", "GaugeMetricFamily", "HistogramMetricFamily"})


@dataclass(frozen=True, slots=True)
class Metric:
    """One declaration."""

    name: str
    kind: str
    help: str
    labels: frozenset[str]
    package: str

    def series(self) -> frozenset[str]:
        """The names of the series that Prometheus sees of it."""
        if self.kind == "Histogram":
            return frozenset(f"{self.name}_{part}" for part in ("bucket", "count", "sum"))
        return frozenset({self.name})

    def series_labels(self, series: str) -> frozenset[str]:
        """The labels of one of them."""
        return self.labels | {"le"} if series.endswith("_bucket") else self.labels


@cache
def declared(packages: tuple[str, ...] = PACKAGES) -> tuple[Metric, ...]:
    """Every metric of ours, by name.

    Raises:
        ValueError: A declaration's name or labels are not written where they are declared.
    """
    found = [metric for package in packages for path in _sources(package) for metric in _in(path, package)]
    return tuple(sorted(found, key=lambda metric: (metric.name, metric.package)))


def _sources(package: str) -> Iterator[Path]:
    spec = find_spec(package)
    for location in spec.submodule_search_locations or () if spec else ():
        yield from sorted(Path(location).rglob("*.py"))


def _in(path: Path, package: str) -> Iterator[Metric]:
    for node in ast.walk(ast.parse(path.read_text())):
        if not isinstance(node, ast.Call) or not isinstance(node.func, ast.Name):
            continue
        kind = node.func.id
        if kind not in KINDS | FAMILIES or not node.args:
            continue
        name, *others = node.args
        if not isinstance(name, ast.Constant) or not str(name.value).startswith("kgents_"):
            continue  # `collections.Counter(words)` is another's
        named = {keyword.arg: keyword.value for keyword in node.keywords}
        documentation, *rest = others or [named["documentation"]]
        given = named.get("labelnames", named.get("labels"))
        labels = given if given is not None else (rest[0] if rest and kind in KINDS else None)
        try:
            yield Metric(
                _exported(str(name.value), kind),
                kind.removesuffix("MetricFamily"),
                str(ast.literal_eval(documentation)),
                frozenset(ast.literal_eval(labels)) if labels is not None else frozenset(),
                package,
            )
        except ValueError as error:
            raise ValueError(f"{path}:{node.lineno}: {name.value!r} is not declared in literals") from error


def _exported(name: str, kind: str) -> str:
    is_counter = kind in ("Counter", "CounterMetricFamily")
    return f"{name}_total" if is_counter and not name.endswith("_total") else name
