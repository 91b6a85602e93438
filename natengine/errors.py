"""Every exception that natengine raises, in one tree.

    NatengineError
    ├── ConfigError            a person's mistake: a command, a rule, an option, a file   (exit status 2)
    │   ├── RuleSyntaxError    a rule or a command line that cannot be read               (exit status 2)
    │   └── RuleApplyError     a well-formed command that the rule set refuses            (exit status 1)
    ├── HostError              this machine cannot do what was asked, and what to do      (exit status 1)
    │   └── FastPathError      NATENGINE_FASTPATH names a twin that is not there
    ├── CorruptTable           the records of a flow table contradict themselves           (exit status 1)
    ├── ControlError           the engine cannot be reached, or refused a request         (exit status 1)
    └── BadPacket              bytes that are not a packet; never leaves the core
        └── Truncated          fewer bytes than the packet's own headers announce

Packets never raise out of the engine: a bad one becomes a `Decision` with a `Reason`.  People's
mistakes do, and the message says where and what to write instead.
"""

from __future__ import annotations


class NatengineError(Exception):
    """Base of every natengine exception; `exit_status` is what the command line ends with."""

    exit_status = 1


class ConfigError(NatengineError, ValueError):
    """A command, rule, option or file that is wrong.  Nothing has been changed."""

    exit_status = 2


class RuleSyntaxError(ConfigError):
    """A rule or a rule command could not be read.

    Attributes:
        line: Line number in the file, from 1; None for a command line.
    """

    def __init__(self, message: str, *, line: int | None = None) -> None:
        super().__init__(message if line is None else f"line {line}: {message}")
        self.line = line


class RuleApplyError(ConfigError):
    """The command is well formed, but the rule set does not allow it (no such chain, rule or number)."""

    exit_status = 1


class HostError(NatengineError, OSError):
    """The machine lacks something (root, NFQUEUE, an interface); the message says what to do."""


class FastPathError(HostError):
    """The fast path that was asked for by name cannot be used here."""


class CorruptTable(NatengineError, ValueError):
    """The memory that a flow table was to be taken over from has what no engine writes."""


class ControlError(NatengineError, RuntimeError):
    """The running engine could not be reached over its socket, or it refused the request."""


class BadPacket(NatengineError, ValueError):
    """Bytes that cannot be read as the packet they claim to be.  Caught inside the core."""


class Truncated(BadPacket):
    """Fewer bytes were captured than the headers announce."""
