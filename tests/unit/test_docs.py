"""What the documents say that a program can check."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from natengine.app.cli import COMMANDS, USAGE
from natengine.settings import SECOND_NS, Timeouts
from natengine.vocab import VERDICTS, Reason

ROOT = Path(__file__).resolve().parents[2]


def test_behaviour_lists_every_reason_with_its_verdict() -> None:
    """docs/behaviour.md has one row a reason, in order."""
    rows = re.findall(r"^\| ([a-z ]+) \| (accept|drop) \|", (ROOT / "docs/behaviour.md").read_text(), re.M)
    expected = [(reason.name.lower().replace("_", " "), VERDICTS[reason].name.lower()) for reason in Reason]
    assert rows == expected


def test_behaviour_has_the_default_timeouts() -> None:
    """The table of timeouts is that of Settings."""
    timeouts = Timeouts()
    text = (ROOT / "docs/behaviour.md").read_text()
    seconds = [
        timeouts.tcp_established_ns, timeouts.tcp_transitory_ns, timeouts.udp_ns, timeouts.udp_dns_ns,
        timeouts.icmp_query_ns, timeouts.udplite_ns, timeouts.dccp_ns, timeouts.generic_ns,
    ]
    table = text[text.index("## Timeouts"):]
    assert re.findall(r"\| (\d+) s", table) == [str(value // SECOND_NS) for value in seconds]


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_is_described(command: str) -> None:
    """In the usage text and in docs/commands.md."""
    assert re.search(rf"^  {command} ", USAGE, re.M)
    assert re.search(rf"^## .*\b{command}\b", (ROOT / "docs/commands.md").read_text(), re.M)


def test_links_between_documents_lead_somewhere() -> None:
    """Every relative link in a Markdown file names a file that exists."""
    documents = [*ROOT.glob("*.md"), *ROOT.glob("docs/*.md"), *ROOT.glob("*/README.md")]
    for document in documents:
        for target in re.findall(r"\]\(([^)#:]+)\)", document.read_text()):
            assert (document.parent / target).exists(), f"{document.name} -> {target}"


@pytest.mark.parametrize("document", ["kernels", "reliability"])
def test_documents_name_tests_that_exist(document: str) -> None:
    """They say what shows each difference, and each promise; that test is there."""
    named = set(re.findall(r"`(test_\w+)", (ROOT / f"docs/{document}.md").read_text()))
    files = list((ROOT / "tests").rglob("test_*.py"))
    functions = re.findall(r"^def (test_\w+)", "\n".join(path.read_text() for path in files), re.M)
    assert named and named <= {path.stem for path in files}.union(functions)
