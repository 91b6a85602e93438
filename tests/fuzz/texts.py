"""Text that nobody writes: rules, saved rules, settings and requests.

Whatever comes, it is read or it is refused with an error of ours; and what was read is written and read again.
"""

from __future__ import annotations

import json
from typing import Any

from support.backends import load_backend, table_config
from support.engines import INTERFACES

from natengine.app.control import ControlServer
from natengine.app.gateway import Gateway
from natengine.app.peer import Rights
from natengine.errors import NatengineError
from natengine.frontend.iptables import parse_command
from natengine.frontend.listing import list_specs
from natengine.frontend.save import dump, parse_restore
from natengine.frontend.toml import read_settings
from natengine.nat.engine import NatEngine
from natengine.nat.interfaces import InterfaceTable
from natengine.rules.model import RuleSet
from natengine.settings import Settings


def rules(data: bytes) -> None:
    """Commands, one a line, as a shell without quotes would hand them over; one rule set from first to last."""
    ruleset = RuleSet()
    for line in data.decode(errors="replace").splitlines():
        try:
            ruleset = parse_command(line.split()).apply(ruleset)
        except NatengineError:
            continue
    for table in ruleset.tables:
        list_specs(ruleset, table=table.name)
    assert parse_restore(dump(ruleset, None), source="again")[0] == ruleset


def saved(data: bytes) -> None:
    """Text for `natengine restore`."""
    try:
        ruleset, counters = parse_restore(data.decode(errors="replace"), source="fuzz")
    except NatengineError:
        return
    assert parse_restore(dump(ruleset, counters), source="again")[0] == ruleset


def config(data: bytes) -> None:
    """natengine.toml."""
    try:
        assert isinstance(read_settings(data.decode(errors="replace"), "fuzz"), Settings)
    except NatengineError:
        return


class _NoRandom:
    def randrange(self, start: int, stop: int, /) -> int:
        return start


class _BareGateway(Gateway):
    """An engine without a kernel around it."""

    def __init__(self) -> None:
        self.engine = NatEngine(
            load_backend("python").FastPath(table_config(16)), settings=Settings(max_flows=16), rng=_NoRandom()
        )
        self.engine.replace_interfaces(InterfaceTable(INTERFACES), 0)

    def _take_from(self, uplinks: object, ruleset: object) -> None:
        """There are no hooks."""

    def call(self, function: Any) -> Any:
        return function()

    def status(self) -> dict[str, object]:
        return self.engine.stats()._asdict()


def control(data: bytes) -> None:
    """Lines for the control socket: each has an answer, which is JSON and says whether it is one of success."""
    server = ControlServer.__new__(ControlServer)
    server._gateway = _BareGateway()
    server._commands = {
        name: getattr(server, f"_{name}") for name in ("change", "save", "restore", "status", "conntrack")
    }
    for line in data.split(b"\n"):
        answer = json.loads(json.dumps(server._answer(line, Rights.CHANGE)))
        assert answer["ok"] is True or (answer["error"] and answer["kind"] and answer["exit_status"])

