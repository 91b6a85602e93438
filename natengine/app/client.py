"""Talking to a running engine over its control socket."""

from __future__ import annotations

import json
import socket
from pathlib import Path
from typing import Any

from natengine.errors import ConfigError, ControlError, NatengineError, RuleApplyError, RuleSyntaxError

SOCKET_NAME = "control.sock"
PATIENCE_S = 60

_KINDS: dict[str, type[NatengineError]] = {
    kind.__name__: kind for kind in (ConfigError, RuleApplyError, RuleSyntaxError)
}


def ask(run_dir: Path, command: str, **arguments: object) -> dict[str, Any]:
    """Send one request to the engine of a run directory and return its answer.

    Raises:
        ControlError: No engine answers there, or this user may not ask it.
        ConfigError: The engine refused, for the reason that the exception carries.
    """
    path = run_dir / SOCKET_NAME
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as link:
        link.settimeout(PATIENCE_S)
        try:
            link.connect(str(path))
        except (FileNotFoundError, ConnectionRefusedError):
            raise ControlError(
                f"no engine is running on {path}; start one (natengine run), or name another "
                "run directory (natengine --run-dir DIR …, NATENGINE_RUN_DIR)"
            ) from None
        except PermissionError:
            raise ControlError(f"permission denied on {path}: you must be root") from None
        link.sendall(json.dumps({"command": command, **arguments}).encode() + b"\n")
        answer = _read_answer(link)
    if answer.get("ok"):
        return answer
    raise _KINDS.get(str(answer.get("kind")), ControlError)(str(answer.get("error", "no reason given")))


def _read_answer(link: socket.socket) -> dict[str, Any]:
    with link.makefile("rb") as stream:
        line = stream.readline()
    if not line:
        raise ControlError("the engine hung up without an answer; see its log")
    answer: dict[str, Any] = json.loads(line)
    return answer
