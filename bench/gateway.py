"""One run: a lab, every scenario, every subject in turn, again and again; a JSON line for each figure.

The order is A B C A B C …: whatever the machine does meanwhile hits neighbours alike, and ratios are
taken between neighbours.
"""

from __future__ import annotations

import contextlib
import json
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TextIO

from natlab import Lab, interrupts, unique_prefix
from natlab.errors import LabError

from . import machine, scenarios, subjects
from .scenarios import Measurement, Options, Scenario
from .subjects import Place, Subject


@dataclass(frozen=True)
class Plan:
    """What to measure, and how often."""

    scenarios: Sequence[Scenario]
    subjects: Sequence[Subject]
    repeats: int
    options: Options
    cores: machine.Cores
    nice: int
    prefix: str


def run(plan: Plan, output: Path) -> None:
    """Measure everything; each figure is in the file as soon as it is there.

    Raises:
        LabError: The machine cannot do it, or a subject has sent something wrong.
    """
    facts = {**machine.facts(), "repeats": plan.repeats, "nice": plan.nice, "cores_used": asdict(plan.cores)}
    with contextlib.ExitStack() as stack:
        directory = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="natengine-bench-")))
        machine.build(directory)
        stack.enter_context(machine.favoured(plan.nice))
        lab = stack.enter_context(Lab(unique_prefix(plan.prefix)))
        place = Place(lab, plan.cores, directory)
        stack.enter_context(scenarios.target_addresses(place))
        file = stack.enter_context(output.open("w"))
        facts["links"] = lab.status()["links"]
        for scenario in plan.scenarios:
            for repeat, subject in _turns(scenario, plan):
                interrupts.check()
                _one(place, scenario, subject, repeat, plan.options, facts, file)


def _turns(scenario: Scenario, plan: Plan) -> Iterator[tuple[int, Subject]]:
    """Who comes when."""
    chosen = [
        scenarios.prepared(scenario, subject) for subject in plan.subjects
        if not scenario.natengine_only or subject.name.startswith("natengine:")
    ]
    missing = scenarios.engine_options_missing(scenario, subjects.has_option)
    if chosen and missing:
        _say(f"{scenario.name}: left out, because `natengine run` has no {', '.join(missing)}")
        return
    for repeat in range(plan.repeats):
        for subject in chosen:
            yield repeat, subject


def _one(
    place: Place, scenario: Scenario, subject: Subject, repeat: int, options: Options,
    facts: dict[str, object], file: TextIO,
) -> None:
    """Start a subject, measure it, stop it, note the figure."""
    try:
        with subject.running(place) as running:
            result: Measurement = scenario.measure(place, subject, running, options)
    except LabError as error:
        raise LabError(f"{scenario.name} with {subject.name}: {error}") from error
    line = {
        "scenario": scenario.name, "subject": subject.name, "repeat": repeat, "unit": scenario.unit,
        **asdict(result), "backend": running.backend, "said": running.said, "at": int(time.time()), **facts,
    }
    file.write(json.dumps(line) + "\n")
    file.flush()
    starved = "" if result.starved is None else f"   starved {result.starved:.0%}"
    _say(f"{scenario.name} {repeat + 1} {subject.name}: {result.value:,.2f} {scenario.unit}{starved}")


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)
