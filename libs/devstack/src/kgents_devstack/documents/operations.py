"""`docs/operations.md`: every environment variable as the settings classes have it, and what health means."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from pydantic import SecretStr
from pydantic.fields import FieldInfo
from pydantic_core import PydanticUndefined

from kgents_api.settings import ApiSettings
from kgents_backup.settings import BackupSettings
from kgents_billing.settings import BillingSettings
from kgents_common.settings import ServiceSettings
from kgents_metering.settings import MeteringSettings

SERVICES: tuple[tuple[str, type[ServiceSettings]], ...] = (
    ("api", ApiSettings),
    ("metering", MeteringSettings),
    ("billing", BillingSettings),
    ("backup", BackupSettings),
)
# A host's name differs from machine to machine, and so would the document.
BY_MACHINE = {"KGENTS_INSTANCE": "the host's name"}
BOUNDS = {"gt": "more than", "ge": "at least", "lt": "less than", "le": "at most", "min_length": "at least"}


def page() -> str:
    """Markdown."""
    text = [_HEAD]
    shared = ServiceSettings.model_fields
    text.append("## Every service\n\n" + _table(shared))
    for name, settings in SERVICES:
        own = {
            field: info
            for field, info in settings.model_fields.items()
            if field not in shared or _default(info) != _default(shared[field])
        }
        text.append(f"## {name}\n\n{_table(own)}")
    text.append(_TAIL)
    return "\n".join(text)


def _table(fields: dict[str, FieldInfo]) -> str:
    lines = ["| variable | default | what |", "|---|---|---|"]
    for field, info in fields.items():
        variable = str(info.validation_alias)
        said = "; ".join(
            filter(None, [info.description or field.replace("_", " "), _bounds(info), _secret(info)])
        )
        lines.append(
            f"| `{variable}` | {BY_MACHINE.get(variable) or _default(info)} | {said} |".replace(
                "||", "\\|\\|"
            )
        )
    return "\n".join(lines) + "\n"


def _default(info: FieldInfo) -> str:
    if info.is_required():
        return "**required**"
    value: Any = info.get_default(call_default_factory=False)
    if info.default_factory is not None or value is PydanticUndefined:
        return "made at start"
    if value is None or value == ():
        return "none"
    if isinstance(value, tuple):
        return f"`{','.join(map(str, value))}`"
    return f"`{value.as_posix() if isinstance(value, Path) else value}`"


def _bounds(info: FieldInfo) -> str:
    found = []
    for rule in info.metadata:
        for bound, words in BOUNDS.items():
            value = getattr(rule, bound, None)
            if value is not None:
                found.append(f"{words} {value}{' of them' if bound == 'min_length' else ''}")
    return ", ".join(found)


def _secret(info: FieldInfo) -> str:
    return "a secret" if info.annotation in (SecretStr, SecretStr | None) else ""


_HEAD = """# Operations

Every environment variable, as the services read them: written by `python -m kgents_devstack documents` from the settings
classes, and a test compares. `python -m kgents_<service> --check` prints what a process would use, secrets masked, and says
which are missing. What is of OpenTelemetry alone (`OTEL_*`) is as its specification says.
"""

_TAIL = """## Health

On the main port the answers are a status alone; on the operators' port (`KGENTS_OPERATIONS_PORT`, a thousand above the main one)
they say everything, and there alone are `/metrics`, `/docs` and `/openapi.json`.

| path | question | use |
|---|---|---|
| `/health/live` | does this process run? | liveness; asks no neighbour, so a neighbour's outage restarts nobody |
| `/health/ready` | should work be sent here? | readiness; 503 while something it needs is down, or while it drains |
| `/health` | how does it do, and what does it see? | people; `ok`, `degraded` (works, with something useful away) or `down` |
| `/health/saas` (api) | how does the whole system do? | dashboards; from the api's circuits and the workers' heartbeats |
| `/metrics` | | Prometheus; OpenMetrics where asked for, with exemplars |

`degraded` is no reason to restart anything. A circuit that is open says that a neighbour is away; it closes by itself.

## Capacity

What one process and one stream take is measured in [`performance.md`](performance.md), with the command for each number.
Sizes to set before they are needed, and the alert that says so:

| what | set by | alert |
|---|---|---|
| stream bytes | `python -m kgents_common.streams apply`; about rate × size × days | `StreamNearlyFull`, `StreamFillsWithinADay` |
| the door's instances | CPU near one core each | `ApiLatencyHigh`, `DoorTooBusy` |
| writers of metering | age of events at commit | `MeteringBehind` |
| Postgres's disk | about 1 kB an event, for ever | its own; the ledger never forgets a key |
| the backups' disk | stream bytes × days, compressed | `ArchiveStalled` |

What to do when an alert fires: [`runbooks/`](runbooks/). What the system promises and how it is measured:
`deploy/observability/src/kgents_observability/slo.py`.
"""
