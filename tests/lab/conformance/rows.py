"""Rows of docs/conformance.md: a requirement is a mark on its test, and the table is made from results.

    @requirement("RFC 4787 REQ-1", "MUST", "one outside endpoint for an inside endpoint, whatever its peer")
    def test_rfc4787_req1_endpoint_independent_mapping(net: Network) -> None: ...

A test that the subject fails says in the message of its assertion what the subject does instead: that is the cell.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from typing import Any

import pytest

HEAD = """\
# Conformance

What the RFCs want of a NAT, tested from outside: crafted packets from two hosts inside and one outside, natengine or
the kernel's MASQUERADE between them, in the same lab and run. `make conformance` writes this table, `make test` runs
natengine's column.

Both have their defaults (natengine {natengine}; kernel {kernel}, no filter rules, no sysctl changed), but where a row
is about an option. *yes*: it conforms; *no* says what happens instead.

"""


@dataclass(frozen=True)
class Requirement:
    """What a row says beside the results."""

    name: str
    level: str
    text: str
    settings: str                   # natengine.toml, where the requirement is about an option
    rules: tuple[str, ...]          # iptables commands that come before MASQUERADE


def requirement(
    name: str, level: str, text: str, *, settings: str = "", rules: tuple[str, ...] = ()
) -> pytest.MarkDecorator:
    """Make a test the row of a requirement.

    Args:
        name: RFC and number, or what the RFC calls it.
        level: MUST, SHOULD, … as there.
        settings: natengine is started with these; who has no such option fails the test.
        rules: Both are given these nat rules.
    """
    return pytest.mark.requirement(Requirement(name, level, text, settings, rules))


@dataclass
class Row:
    """A requirement and its results so far; a parametrised test has several."""

    wanted: Requirement
    test: str
    failures: dict[str, list[str]] = field(default_factory=dict)       # by subject

    def cell(self, subject: str) -> str:
        if subject not in self.failures:
            return "not tested"
        failures = list(dict.fromkeys(filter(None, self.failures[subject])))
        if not self.failures[subject]:
            return "yes"
        return f"no: {'; '.join(failures)}" if failures else "no"


class Table:
    """The results of a session."""

    def __init__(self) -> None:
        self._rows: dict[str, Row] = {}

    def record(self, wanted: Requirement, test: str, subject: str, failure: str | None) -> None:
        """Note one result; `failure` None: it conforms."""
        failures = self._rows.setdefault(test, Row(wanted, test)).failures.setdefault(subject, [])
        if failure is not None:
            failures.append(failure)

    def text(self, **versions: str) -> str:
        """Return the document."""
        lines = ["| requirement | | natengine | kernel MASQUERADE |", "|---|---|---|---|"]
        for row in sorted(self._rows.values(), key=lambda row: _order(row.wanted.name)):
            wanted = row.wanted
            lines.append(
                f"| **{wanted.name}** {wanted.text} | {wanted.level} | {row.cell('natengine')} `{row.test}` "
                f"| {row.cell('kernel')} |"
            )
        yes = {subject: sum(row.cell(subject) == "yes" for row in self._rows.values()) for subject in SUBJECTS}
        counts = f"\n{len(self._rows)} requirements: natengine {yes['natengine']}, kernel {yes['kernel']}.\n"
        return HEAD.format(**versions) + "\n".join(lines) + "\n" + counts


SUBJECTS = ("natengine", "kernel")


def _order(name: str) -> list[Any]:
    """Sort by number where there are numbers: REQ-2 before REQ-2a before REQ-10."""
    return [(0, int(word), "") if word.isdigit() else (1, 0, word) for word in re.findall(r"\d+|[^\d\W]+", name)]
