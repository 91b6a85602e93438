"""JSON lines to tables.  Never measures anything."""

from __future__ import annotations

import json
import statistics
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from natlab.errors import LabError

from .sample import GSO_DATAGRAMS

YARDSTICKS = ("kernel", "c")
BUSY = 0.05                     # a figure with more starvation than this says little
SCALE = {"packets/s": (1e3, "kpps"), "flows/s": (1e3, "kflows/s")}


def read(path: Path) -> list[dict[str, Any]]:
    """Read the figures of a run.

    Raises:
        LabError: There are none.
    """
    try:
        lines = [json.loads(line) for line in path.read_text().splitlines()]
    except (OSError, ValueError) as error:
        raise LabError(f"{path}: {error}") from None
    if not lines:
        raise LabError(f"{path}: no figures")
    return lines


def render(lines: Sequence[dict[str, Any]]) -> str:
    """Return the report of one run as Markdown, which is readable as plain text."""
    first = lines[0]
    used = first["cores_used"]
    parts = [
        f"natengine {first['commit']}, kernel {first['kernel']}, {first['cpu']}, {first['cores']} processors "
        f"(engine on {used['engine']}, sender on {used['sender']}), {first['links']} links, "
        f"Python {first['python']}, {first['repeats']} repeats, niceness {first['nice']}",
    ]
    for name in dict.fromkeys(line["scenario"] for line in lines):
        parts.append("\n".join(_section(name, [line for line in lines if line["scenario"] == name])))
    return "\n\n".join(parts) + "\n"


def _section(name: str, lines: list[dict[str, Any]]) -> Iterator[str]:
    subjects = list(dict.fromkeys(line["subject"] for line in lines))
    by_subject = {each: {line["repeat"]: line for line in lines if line["subject"] == each} for each in subjects}
    divisor, unit = SCALE.get(lines[0]["unit"], (1.0, lines[0]["unit"]))
    yardsticks = [each for each in YARDSTICKS if each in by_subject]
    rows = [["subject", unit, "min - max", *(f"to {each}" for each in yardsticks), "cpu/packet", "starved", "more"]]
    for subject, runs in by_subject.items():
        values = [line["value"] / divisor for line in runs.values()]
        row = [subject, f"{statistics.median(values):.4g}", f"{min(values):.4g} - {max(values):.4g}"]
        row += [_ratio(runs, by_subject[each]) if each != subject else "1" for each in yardsticks]
        rows.append([*row, _median(runs, "cpu_ns", "{:.0f} ns"), _starved(runs), _more(name, runs)])
    yield f"## {name}"
    yield ""
    yield from _table(rows)
    yield ""
    backends = [f"{each} = {next(iter(runs.values()))['backend']}" for each, runs in by_subject.items()]
    yield "backends: " + "; ".join(backends)


def _ratio(runs: dict[int, dict[str, Any]], others: dict[int, dict[str, Any]]) -> str:
    """The median of the ratios of neighbours, and their spread."""
    ratios = [line["value"] / others[repeat]["value"] for repeat, line in runs.items() if repeat in others]
    return f"{statistics.median(ratios):.3f} ({min(ratios):.3f} - {max(ratios):.3f})" if ratios else "-"


def _median(runs: dict[int, dict[str, Any]], key: str, form: str) -> str:
    values = [line[key] for line in runs.values() if line[key] is not None]
    return form.format(statistics.median(values)) if values else "-"


def _starved(runs: dict[int, dict[str, Any]]) -> str:
    values = [line["starved"] for line in runs.values() if line["starved"] is not None]
    return "-" if not values else f"{statistics.median(values):.0%}{' (!)' if max(values) > BUSY else ''}"


def _more(name: str, runs: dict[int, dict[str, Any]]) -> str:
    details = [line["details"] for line in runs.values()]

    def middle(key: str) -> float:
        return float(statistics.median(each[key] for each in details))

    if name in ("udp", "newflow"):
        arrived = statistics.median(line["value"] / line["details"]["offered"] for line in runs.values())
        lost = sum(each["overflow"] for each in details)
        overflow = f", {lost} lost by the counter" if lost else ""
        return f"offered {middle('offered') / 1e3:.4g} kpps, {arrived:.0%} arrived{overflow}"
    if name == "rtt":
        return f"p99 {middle('p99'):.4g} us, mean {middle('mean'):.4g}, best {middle('best'):.4g}"
    if name == "scale":
        return f"{middle('ratio'):.3f} of {middle('few') / 1e3:.4g} kpps with 64 flows; table {middle('table'):.0f}"
    whole = min(each["gso_datagrams"] for each in details)
    trouble = ""
    if whole != GSO_DATAGRAMS:
        trouble = f"; of {GSO_DATAGRAMS} UDP GSO datagrams {whole} arrived (!)"
    return f"retransmits {middle('retransmits'):.0f}{trouble}"


def _table(rows: list[list[str]]) -> Iterator[str]:
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    for number, row in enumerate(rows):
        yield "| " + " | ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)) + " |"
        if number == 0:
            yield "|" + "|".join("-" * (width + 2) for width in widths) + "|"
