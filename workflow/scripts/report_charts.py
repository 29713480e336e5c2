"""The charts of the report page, as Vega-Lite specifications; the page gives them its colours."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import altair as alt

MAX_BARS = 25  # above that many batches, completion is shown as a distribution
MAX_CLASSES = 15
BAR_STEP = 22  # pixels
CHART_HEIGHT = 220  # pixels
MAX_LEVEL_LABELS = 4  # more of them would overlap if they were not slanted
LABEL_LIMIT = 130  # pixels
REST = "(other)"
DASH = "\N{EN DASH}"
Row = dict[str, Any]


def completion_chart(batches: Sequence[Mapping[str, Any]]) -> tuple[alt.Chart, list[Row]]:
    """Return the completion of each batch, or of many batches its distribution, and its data.

    Args:
        batches: `batch`, `complete` and `tracks` of each batch that has tracks.
    """
    if len(batches) <= MAX_BARS:
        rows = [
            {"label": b["batch"], "value": b["complete"] / b["tracks"], "of": _of(b)}
            for b in batches
        ]
        rows.sort(key=lambda row: -row["value"])
        x = alt.X("value:Q", title="tracks complete", scale=alt.Scale(domain=[0, 1]))
        of = alt.Tooltip("of:N", title="tracks complete")
        chart = _bars(rows, x.axis(format="%", tickCount=4, labelFlush=False), of)
        return chart, [{"label": r["label"], "value": r["of"]} for r in rows]
    counts = [0] * 11
    for batch in batches:
        counts[min(10, 10 * batch["complete"] // batch["tracks"])] += 1
    labels = [f"{10 * n}{DASH}{10 * n + 9} %" for n in range(10)] + ["100 %"]
    rows = [{"label": label, "value": count} for label, count in zip(labels, counts, strict=True)]
    return _columns(rows, "tracks complete", "batches"), rows


def ranking_chart(counts: Mapping[str, int], title: str) -> tuple[alt.Chart, list[Row]]:
    """Return a bar for each name, the longest first, what is beyond the largest ones added up."""
    ranked = sorted(
        ((name, count) for name, count in counts.items() if name != REST),
        key=lambda item: (-item[1], item[0]),
    )
    rest = counts.get(REST, 0) + sum(count for _, count in ranked[MAX_CLASSES:])
    ranked = [*ranked[:MAX_CLASSES], *([(REST, rest)] if rest else [])]
    rows = [{"label": name, "value": count} for name, count in ranked]
    return _bars(
        rows,
        alt.X("value:Q", title=title).axis(tickMinStep=1, tickCount=4, labelFlush=False),
        _value(title),
    ), rows


def histogram_chart(
    counts: Mapping[str, int], title: str, what: str, whole: bool = True
) -> tuple[alt.Chart, list[Row]]:
    """Return columns over bins at the powers of two.

    Args:
        counts: How many there are, by lower bound.
        title: What is measured.
        what: What is counted.
        whole: Whether what is measured comes in whole numbers.
    """
    found = {int(bound): count for bound, count in counts.items()}
    bounds = [0] if 0 in found else []
    exponents = [bound.bit_length() - 1 for bound in found if bound]
    if exponents:  # with the empty bins in between
        bounds += [1 << n for n in range(0 if bounds else min(exponents), max(exponents) + 1)]
    rows = [{"label": _bin(b, whole), "value": found.get(b, 0)} for b in bounds]
    return _columns(rows, title, what), rows


def _bin(bound: int, whole: bool) -> str:
    upper = 2 * bound if bound else 1
    if not whole:
        return f"{bound:,}{DASH}{upper:,}"
    return f"{bound:,}" if upper - bound == 1 else f"{bound:,}{DASH}{upper - 1:,}"


def _of(batch: Mapping[str, Any]) -> str:
    return f"{batch['complete']} of {batch['tracks']}"


def _bars(rows: list[Row], x: alt.X, value: alt.Tooltip) -> alt.Chart:
    y = alt.Y("label:N", title=None, sort=None).axis(labelLimit=LABEL_LIMIT, ticks=False)
    tooltip = [alt.Tooltip("label:N", title=" "), value]
    chart = alt.Chart(alt.InlineData(rows), width="container", autosize="fit-x")
    chart = chart.properties(height=BAR_STEP * len(rows))
    drawn: alt.Chart = chart.mark_bar(cornerRadiusEnd=3).encode(x=x, y=y, tooltip=tooltip)
    return drawn


def _columns(rows: list[Row], title: str, what: str) -> alt.Chart:
    angle = -40 if len(rows) > MAX_LEVEL_LABELS else 0
    x = alt.X("label:N", title=title, sort=None).axis(labelAngle=angle, ticks=False, grid=False)
    y = alt.Y("value:Q", title=what).axis(tickMinStep=1, tickCount=5)
    chart = alt.Chart(alt.InlineData(rows), width="container", autosize="fit-x")
    tooltip = [alt.Tooltip("label:N", title=title), _value(what)]
    chart = chart.properties(height=CHART_HEIGHT)
    drawn: alt.Chart = chart.mark_bar(cornerRadiusEnd=3).encode(x=x, y=y, tooltip=tooltip)
    return drawn


def _value(title: str) -> alt.Tooltip:
    return alt.Tooltip("value:Q", title=title, format=",")
