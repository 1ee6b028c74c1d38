"""What operators read of a restore: its plan before, its report after."""

from __future__ import annotations

from kgents_backup.handlers.progress import amount
from kgents_backup.model.plan import Pace
from kgents_backup.operations.restoring import Prepared, RestoreReport


def plan_text(prepared: Prepared, store: str, into: str | None, pace: Pace | None = None) -> str:
    """What a restore would do, a line for each step.

    Args:
        pace: How fast the server takes messages, measured before; None to name no time.
    """
    plan = prepared.plan
    base = (
        f"the snapshot of {plan.snapshot.taken_at.isoformat()} (sequence {plan.snapshot.last},"
        f" {amount(plan.snapshot_bytes, 'bytes')})"
        if plan.snapshot
        else "an empty stream"
    )
    lines = [
        f"{plan.stream} to {plan.until}"
        + (f" into {into}" if into else "")
        + f", from {store}, line {plan.line}:",
        f"  1. restore {base}",
        f"  2. replay {len(plan.segments)} segments ({amount(plan.segment_bytes, 'bytes')})",
        f"  3. at most sequence {plan.reaches}{_time_text(prepared, pace)}",
    ]
    lines += [
        f"  then what only line {other.line} holds ({len(other.segments)} segments,"
        f" {amount(other.segment_bytes, 'bytes')}), after the end"
        for other in prepared.appended
    ]
    lines += [f"  note: {note}" for note in prepared.notes]
    lines += [f"  damaged and avoided: {reason}" for reason in prepared.avoided]
    if plan.hole is not None:
        lines.append(f"  nothing accounts for sequence {plan.hole}: the tail ends before it")
    return "\n".join(lines)


def _time_text(prepared: Prepared, pace: Pace | None) -> str:
    if pace is None:
        return ""
    messages = int(prepared.manifest.state["messages"]) if prepared.manifest else 0
    way = ", as files" if prepared.plan.is_by_files(pace, messages) else ""
    return (
        f"; about {amount_of_time(prepared.plan.seconds(pace, messages))}{way}"
        f" (this server stores {pace.messages_per_second:,.0f} small messages a second now)"
    )


def amount_of_time(seconds: float) -> str:
    """Seconds, minutes or hours."""
    if seconds < 120:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 7200 else f"{seconds / 3600:.1f} h"


def report_text(report: RestoreReport) -> str:
    """What a restore did, and what of the stream as it was is not in it."""
    first = (
        f"{report.into}: {report.messages} messages up to sequence {report.last_sequence}"
        f" in {report.seconds:.1f} s ({report.physical} physical, {report.replayed} replayed,"
        f" {report.fillers} gaps kept)"
    )
    lines = [first]
    if report.appended:
        lines.append(f"  {report.appended} of them are another line's and stand after the end")
    if report.live_before is not None:
        lines.append(
            f"  live before: {report.live_before} messages up to sequence {report.live_last}; of these"
            f" {report.missing} are not restored"
            + (f", first {report.first_missing}" if report.missing else "")
            + f"; all of them are kept as {report.kept}"
        )
    lines += [f"  digest {report.digest}"] if report.digest else []
    lines += [*[f"  consumer {name} is done up to {floor}" for name, floor in report.consumers]]
    if report.stripped:
        lines.append(f"  {report.stripped} messages lost headers that the server refuses now")
    lines += [f"  note: {note}" for note in report.notes]
    return "\n".join(lines)
