"""A usage query as one SQL statement over the minutes, for every aggregation; it is run elsewhere.

Whole minutes come from the rollup. Where a query begins or ends within a minute, the events of that part of
the minute are measured again and joined in as rows of the same shape, so nothing is approximate.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from datetime import UTC
from decimal import Decimal
from typing import Any

from kgents_metering.model.meters import Aggregation
from kgents_metering.model.query import Filter, Query, Span
from kgents_metering.model.rollup import Rollup
from kgents_metering.model.windows import MINUTE, Windows
from kgents_metering.sinks.ledger.meters import MeterInForce
from kgents_metering.sinks.ledger.reads.rows import Row

_VALUES = {
    Aggregation.SUM: "sum(s.sum)",
    Aggregation.COUNT: "sum(s.cnt)",
    Aggregation.UNIQUE_COUNT: "count(distinct s.vhash)",
    # Postgres keeps no more than sixteen digits of a quotient unless an operand has a larger scale.
    Aggregation.AVG: "(sum(s.sum) + 0::numeric(50, 40)) / nullif(sum(s.cnt), 0)",
    Aggregation.MIN: "min(s.min)",
    Aggregation.MAX: "max(s.max)",
    Aggregation.LATEST: "(array_agg(s.last_value order by s.last_time desc, s.last_n desc)"
    " filter (where s.last_n is not null))[1]",
}
_ORDERS = {"$eq": "=", "$ne": "<>", "$gt": ">", "$gte": ">=", "$lt": "<", "$lte": "<="}
_PATTERNS = {
    "$like": "like",
    "$nlike": "not like",
    "$ilike": "ilike",
    "$nilike": "not ilike",
    "$contains": "ilike",
    "$ncontains": "not ilike",
}
_COLUMNS = "minute, grp, cnt, sum, min, max, last_time, last_n, last_value"


def build(
    meter: MeterInForce, tenant: str, query: Query, parts: Rollup, windows: Windows | None, *, limit: int
) -> tuple[str, dict[str, Any]]:
    """The statement and its values. Its columns: window, last minute, groups, value, count of all rows.

    Args:
        parts: The minutes that the query cuts, as far as it wants them.
        windows: The windows that a minute of the query may lie in; None where none are asked for.
        limit: The most rows it gives, and counts.
    """
    conditions, values = _where(meter, tenant, query.span, windows)
    if meter.meter.aggregation is Aggregation.UNIQUE_COUNT:
        source = (
            f"select {_prefixed('r')}, d.vhash from metering.rollup r"
            " join metering.distinct_value d using (meter, tenant, minute, grp_key)"
        )
    else:
        source = f"select {_prefixed('r')}, null::bytea from metering.rollup r"
    source += f" where {conditions} union all {_EDGE_ROWS}"
    values |= _edge_values(parts, meter.meter.aggregation)

    window = _window(windows, values) if windows else "min(s.minute)"
    last = "null::timestamptz" if windows else "max(s.minute)"
    keys = []
    for index, key in enumerate(query.group_by):
        values[f"key{index}"] = key
        keys.append(f"coalesce(s.grp->>%(key{index})s, '') collate \"C\"")
    where = [_condition(key, condition, values) for key, condition in query.filters.items()]
    value = _VALUES[meter.meter.aggregation]
    positions = [*([1] if windows else []), *range(3, 3 + len(keys))]
    ordered = ", ".join(map(str, range(1, 3 + len(keys))))
    statement = (
        f"with s (minute, grp, cnt, sum, min, max, last_time, last_n, last_value, vhash) as ({source})"
        f" select {', '.join([window, last, *keys, value])} from s"
        + (f" where {' and '.join(where)}" if where else "")
        + (f" group by {', '.join(map(str, positions))}" if positions else "")
        + f" having {value} is not null and count(*) > 0"
        + f" order by {ordered} limit {limit:d}"
    )
    # The count is of no more rows than the limit; ordered again, which costs nothing where it is in order.
    statement = f"select *, count(*) over () from ({statement}) as found order by {ordered}"
    return statement, values


def group_values(
    meter: MeterInForce, tenant: str, key: str, span: Span, *, limit: int
) -> tuple[str, dict[str, Any]]:
    """The statement for the values that a group key had in whole minutes."""
    conditions, values = _where(meter, tenant, span)
    values["key"] = key
    value = "coalesce(r.grp->>%(key)s, '')"
    return f"select distinct {value} from metering.rollup r where {conditions} limit {limit:d}", values


def has_usage(meter: MeterInForce, tenant: str, span: Span) -> tuple[str, dict[str, Any]]:
    """The statement for whether a tenant used a meter in whole minutes."""
    conditions, values = _where(meter, tenant, span)
    return f"select exists (select 1 from metering.rollup r where {conditions})", values


def first_and_last(meter: MeterInForce, tenant: str, span: Span) -> tuple[str, dict[str, Any]]:
    """The statement for the first and the last minute there is in the rollup."""
    conditions, values = _where(meter, tenant, span)
    return f"select min(r.minute), max(r.minute) from metering.rollup r where {conditions}", values


def _where(
    meter: MeterInForce, tenant: str, span: Span, windows: Windows | None = None
) -> tuple[str, dict[str, Any]]:
    values: dict[str, Any] = {"meter": meter.id, "tenant": tenant}
    whole = span.whole_minutes()
    start, end = whole.start, whole.end
    if windows is not None:  # a minute that has come since they were made lies in none of them
        start = max(start or windows.starts[0], windows.starts[0])
        end = min(end or windows.end, windows.end)
    conditions = ["r.meter = %(meter)s", "r.tenant = %(tenant)s"]
    if start is not None:
        conditions.append("r.minute >= %(start)s")
        values["start"] = start
    if end is not None:
        conditions.append("r.minute < %(end)s")
        values["end"] = end
    return " and ".join(conditions), values


def _window(windows: Windows, values: dict[str, Any]) -> str:
    """Where the window of a minute begins: looked up in what was computed, as Postgres knows other zones."""
    if windows.step == MINUTE:
        return "s.minute"
    values["w_starts"] = list(windows.starts)
    run = "width_bucket(s.minute, %(w_starts)s::timestamptz[])"
    start = f"(%(w_starts)s::timestamptz[])[{run}]"
    if windows.step is None:
        return start
    values["w_origins"], values["w_step"] = list(windows.origins), windows.step
    return f"greatest({start}, date_bin(%(w_step)s, s.minute, (%(w_origins)s::timestamptz[])[{run}]))"


def _prefixed(alias: str) -> str:
    return ", ".join(f"{alias}.{name.strip()}" for name in _COLUMNS.split(","))


_EDGE_ROWS = """
select t.minute, t.grp::jsonb, t.cnt, t.sum, t.min, t.max, t.last_time, t.last_n, t.last_value, t.vhash
from unnest(%(e_minute)s::timestamptz[], %(e_grp)s::text[], %(e_cnt)s::bigint[], %(e_sum)s::numeric[],
            %(e_min)s::numeric[], %(e_max)s::numeric[], %(e_last_time)s::timestamptz[],
            %(e_last_n)s::bigint[], %(e_last_value)s::numeric[], %(e_vhash)s::bytea[])
     as t (minute, grp, cnt, sum, min, max, last_time, last_n, last_value, vhash)
"""


def _edge_values(parts: Rollup, aggregation: Aggregation) -> dict[str, Any]:
    rows = parts.rows()
    hashes: list[tuple[int, bytes | None]]
    if aggregation is Aggregation.UNIQUE_COUNT:
        place = {key: index for index, (key, _) in enumerate(rows)}
        hashes = [(place[entry[:4]], entry[4]) for entry in sorted(parts.distinct)]
    else:
        hashes = [(index, None) for index in range(len(rows))]
    found: dict[str, Any] = {"e_minute": [], "e_grp": [], "e_vhash": []}
    names = ("cnt", "sum", "min", "max", "last_time", "last_n", "last_value")
    for name in names:
        found[f"e_{name}"] = []
    for index, vhash in hashes:
        key, delta = rows[index]
        found["e_minute"].append(key[2])
        found["e_grp"].append(delta.group)
        found["e_vhash"].append(vhash)
        for name in names:
            found[f"e_{name}"].append(getattr(delta, name))
    return found


def _condition(key: str, condition: Filter, values: dict[str, Any]) -> str:
    """A filter tree as SQL, its values bound."""

    def bind(value: object) -> str:
        name = f"v{len(values)}"
        values[name] = value
        return f"%({name})s"

    left = f"coalesce(s.grp->>{bind(key)}, '')"
    parts: list[str] = []
    for operator, value in condition.items():
        if operator in ("$and", "$or"):
            joined = f" {operator[1:]} ".join(_condition(key, part, values) for part in value)
            parts.append(f"({joined})")
        elif operator == "$in":
            parts.append(f"{left} = any({bind(value)}::text[])")
        elif operator == "$nin":
            parts.append(f"not {left} = any({bind(value)}::text[])")
        elif operator in _PATTERNS:
            parts.append(f"{left} {_PATTERNS[operator]} {bind(_pattern(operator, value))}")
        else:  # in the order of code points, whatever the database's collation
            parts.append(f'{left} collate "C" {_ORDERS[operator]} {bind(value)}')
    return f"({' and '.join(parts)})"


def _pattern(operator: str, value: str) -> str:
    """A pattern of LIKE; the text itself where it is to be contained."""
    if operator in ("$contains", "$ncontains"):
        return "%" + re.sub(r"([\\\\%_])", r"\\\1", value) + "%"
    trailing = len(value) - len(value.rstrip("\\"))
    return value + "\\" if trailing % 2 else value  # Postgres refuses a pattern that ends in an escape


def as_row(row: Sequence[Any], query: Query, windows: Windows | None) -> Row:
    """A row of the statement."""
    groups = dict(zip(query.group_by, row[2:-2], strict=True))
    if windows is not None:
        return Row(*windows.around(row[0].astimezone(UTC)), groups, Decimal(row[-2]))
    return Row(
        query.span.start or row[0].astimezone(UTC),
        query.span.end or row[1].astimezone(UTC) + MINUTE,
        groups,
        Decimal(row[-2]),
    )
