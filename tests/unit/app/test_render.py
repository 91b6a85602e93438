"""`natengine status`, as people read it."""

from __future__ import annotations

import io

from rich.console import Console

from natengine.app.render import print_status
from natengine.vocab import Reason

STATUS = {
    "version": "0.1.0", "pid": 4242, "uptime_s": 3725, "fastpath": "python",
    "io": {
        "name": "netfilterqueue", "queues": [2663, 2663], "packets": 17, "overruns": 0, "errors": 0, "queue_full": 3,
    },
    "hooks": "iptables",
    "interfaces": [
        {"name": "lo", "ifindex": 1, "up": True, "addresses": ["127.0.0.1"], "uplink": False},
        {"name": "bond0.def", "ifindex": 2, "up": True, "addresses": ["10.1.0.1"], "uplink": False},
        {"name": "bond0.2", "ifindex": 3, "up": False, "addresses": [], "uplink": True},
    ],
    "rules": {
        "nat": ["-P POSTROUTING ACCEPT", "-A POSTROUTING -o bond0.2 -j MASQUERADE"],
        "filter": ["-P FORWARD DROP", "-A FORWARD -m comment --comment \"[red]\" -j ACCEPT"],
    },
    "flows": 5, "max_flows": 1000, "mappings": 4, "overloaded": 0, "fragments": {"datagrams": 12, "held": 34},
    "packets_shed": 4711, "senders_shed": ["10.1.0.11", "10.1.0.11"],
    "packets_by_reason": {reason.name: int(reason) * (reason is not Reason.NO_RULE) for reason in Reason},
}


def test_page() -> None:
    """Everything that matters is on it, and what is zero is not."""
    out = io.StringIO()
    print_status(STATUS, Console(file=out, width=200, highlight=False))
    page = out.getvalue()
    for text in (
        "0.1.0", "4242", "1:02:05", "python", "netfilterqueue", "2663", "17", "5 of at most 1000",
        "12 datagrams in pieces", "34 pieces held",
        "4711 packets of floods were dropped before they were queued, 10.1.0.11 just now",
        "-t nat -A POSTROUTING -o bond0.2 -j MASQUERADE", "-t filter -P FORWARD DROP", '"[red]"',
        "bond0.def", "10.1.0.1", "inside", "bond0.2", "uplink", "down", "none", "translated", "truncated",
    ):
        assert text in page, text
    assert "127.0.0.1" not in page
    assert "no rule" not in page
    assert "-P POSTROUTING ACCEPT" not in page
    assert "\x1b" not in page           # plain in a pipe


def test_verdicts() -> None:
    """A reason to drop is shown as one."""
    out = io.StringIO()
    print_status(STATUS, Console(file=out, width=200, highlight=False))
    verdicts = {
        " ".join(words[1:-1]): words[0]
        for words in (line.split() for line in out.getvalue().splitlines()) if words and words[-1].isdigit()
    }
    assert verdicts["translated"] == "accept"
    assert verdicts["unsolicited"] == "drop"
