"""Timings of the stages, hardware and versions, and the events of the run."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence

from ..inputs import ReportInputs
from ..markup import Html, join, tag
from ..page import Section
from ..wording import count, duration, moment, number

EVENTS, DEPTH = 200, 4


def section(inputs: ReportInputs) -> Section | None:
    """Return timings, environment and events; None if all are missing."""
    parts = [part for part in (_timings(inputs), _environment(inputs), _events(inputs)) if part]
    return Section("record", "Run record", tag("div", *parts, class_="stack")) if parts else None


def _timings(inputs: ReportInputs) -> Html:
    seconds = inputs.stage_seconds
    if not seconds:
        return Html("")
    total = sum(seconds.values())
    rows = []
    for stage, spent in seconds.items():
        bar = tag("rect", width=f"{100 * spent / total if total else 0:.1f}", height=6)
        svg = tag("svg", bar, viewBox="0 0 100 6", preserveAspectRatio="none", class_="bar", aria_hidden="true")
        rows.append(tag("tr", tag("th", stage, scope="row"), tag("td", duration(spent), class_="num"), tag("td", svg)))
    sum_row = tag("tr", tag("th", "total", scope="row"), tag("td", duration(total), class_="num"), tag("td"))
    table = tag("table", tag("tbody", *rows), tag("tfoot", sum_row), class_="timings")
    return tag("div", tag("h3", "Timings"), tag("div", table, class_="table"), class_="card")


def _environment(inputs: ReportInputs) -> Html:
    plain, groups = [], []
    for key, value in inputs.environment.items():
        if isinstance(value, Mapping) and value:
            groups.append((str(key), _flat(value)))
        else:
            plain.append((str(key), _text(value)))
    lists = [_list("", plain)] if plain else []
    lists += [_list(key, rows) for key, rows in groups]
    if not lists:
        return Html("")
    return tag("div", tag("h3", "Versions and hardware"), tag("div", *lists, class_="groups"), class_="card")


def _flat(value: Mapping[object, object], prefix: str = "", depth: int = 0) -> list[tuple[str, str]]:
    """Convert nested mappings to rows of dotted path and value, to a limited depth."""
    rows: list[tuple[str, str]] = []
    for key, inner in value.items():
        name = f"{prefix}{key}"
        if isinstance(inner, Mapping) and inner and depth < DEPTH:
            rows += _flat(inner, f"{name}.", depth + 1)
        else:
            rows.append((name, _text(inner)))
    return rows


def _text(value: object) -> str:
    if isinstance(value, Sequence) and not isinstance(value, (str, bytes)):
        return ", ".join(str(item) for item in value) or "none"
    if value is None or isinstance(value, bool):
        return {None: "none", True: "yes", False: "no"}[value]
    return str(value)


def _list(title: str, rows: Sequence[tuple[str, str]]) -> Html:
    entries = [tag("div", tag("dt", key), tag("dd", value)) for key, value in rows]
    return tag("div", tag("h4", title.replace("_", " ")) if title else None, tag("dl", *entries, class_="pairs-list"))


def _events(inputs: ReportInputs) -> Html:
    if not inputs.events:
        return Html("")
    kinds = Counter(str(event.get("event", "unnamed")) for event in inputs.events)
    summary = ", ".join(f"{kind} {count(times)} ×" for kind, times in kinds.items())
    rows = []
    for event in list(inputs.events)[-EVENTS:]:
        rest = {key: value for key, value in event.items() if key not in ("time", "event")}
        facts = [
            f"{key} {count(value) if key == 'step' and number(value) is not None else _text(value)}"
            for key, value in rest.items()
        ]
        rows.append(
            tag(
                "tr",
                tag("td", moment(event.get("time", ""), seconds=True), class_="when"),
                tag("th", str(event.get("event", "unnamed")), scope="row"),
                tag("td", join(facts, between=" · ")),
            )
        )
    left_out = len(inputs.events) - len(rows)
    note = (
        tag(
            "p",
            f"The first {count(left_out)} events are left out; events.jsonl holds all.",
            class_="note",
        )
        if left_out
        else None
    )
    table = tag("table", tag("tbody", *rows), class_="events")
    region = tag("div", table, class_="table", role="region", aria_label="Events", tabindex=0)
    return tag("details", tag("summary", f"Events: {summary}"), note, region, class_="card")
