"""Benchmarks: each a ratio against a bare floor measured in the same run, interleaved."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator

from rich.console import Console

from kgents_devstack import kept
from kgents_devstack.bench.apply import measure_apply
from kgents_devstack.bench.door import measure_door, measure_door_unsynced, measure_webhooks
from kgents_devstack.bench.facts import measure_facts
from kgents_devstack.bench.freshness import measure_freshness
from kgents_devstack.bench.questions import measure_questions, measure_questions_unsynced
from kgents_devstack.bench.report import DIRECTORY, Figure, Report
from kgents_devstack.bench.soak import measure_soak
from kgents_devstack.servers import StartError

BENCHMARKS: dict[str, Callable[[], Iterator[Figure]]] = {
    "apply": measure_apply,
    "door": measure_door,
    "unsynced": measure_door_unsynced,
    "freshness": measure_freshness,
    "webhooks": measure_webhooks,
    "facts": measure_facts,
}
# Too long for everybody's habit: run when named.
LONG: dict[str, Callable[[], Iterator[Figure]]] = {
    "soak": measure_soak,
    "questions": measure_questions,
    "questions-unsynced": measure_questions_unsynced,
}


def run_bench(only: list[str]) -> int:
    """Run the named benchmarks, or all but the long.

    Returns:
        1 where a target is missed or a part failed, or its figures cannot be kept; 2 for an unknown name.
    """
    known = BENCHMARKS | LONG
    unknown = set(only) - set(known)
    if unknown:
        print(f"unknown: {', '.join(sorted(unknown))}; known: {', '.join(known)}")
        return 2
    try:
        with kept.faults_told(DIRECTORY):
            report = Report(Console())
    except StartError as error:
        print(error, file=sys.stderr)
        return 1
    try:
        for name, measure in known.items():
            if name in only or (not only and name in BENCHMARKS):
                report.run(name, measure())
    finally:
        report.end()
    return 0 if report.is_good else 1
