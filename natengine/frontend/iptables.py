"""`natengine iptables …`: from arguments to a Command.

    command = parse_command(["-t", "nat", "-A", "POSTROUTING", "-o", "bond0.2", "-j", "MASQUERADE"])
    ruleset = command.apply(ruleset)
"""

from __future__ import annotations

from collections.abc import Sequence

from natengine.frontend.command import Command, Kind
from natengine.frontend.names import HostLookup, Lookups, ServiceLookup
from natengine.frontend.parser import CommandParser
from natengine.frontend.wording import PROGRAM, help_text, render_error, version_text

__all__ = ["PROGRAM", "Command", "Kind", "help_text", "parse_command", "render_error", "version_text"]


def parse_command(argv: Sequence[str], resolver: HostLookup | None = None,
                  services: ServiceLookup | None = None) -> Command:
    """Read the arguments that follow `natengine iptables`.

    Args:
        argv: The arguments.
        resolver: Host name to dotted quads, empty if not found.  None: only addresses are taken.
        services: (service name, "tcp" or "udp") to port, None if not found.  None: only numbers.

    Raises:
        RuleSyntaxError: The command line is wrong (exit status 2).
        RuleApplyError: It names a table or a policy that does not exist.
    """
    return CommandParser(argv, Lookups(resolver, services)).parse()
