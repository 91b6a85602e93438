"""Talking to a running engine over its control socket."""

from __future__ import annotations

import json
import socket
import struct
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
    request = json.dumps({"command": command, **arguments}).encode() + b"\n"
    answer = _exchange(run_dir / SOCKET_NAME, request)
    if answer.get("ok"):
        return answer
    error = _KINDS.get(str(answer.get("kind")), ControlError)(str(answer.get("error", "no reason given")))
    error.exit_status = int(answer.get("exit_status", error.exit_status))
    raise error


def _exchange(path: Path, request: bytes) -> dict[str, Any]:
    """Send a line and return the one that comes back, read."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as link:
        # With a time-out of Python's the socket would not block, and a full line of clients be an error at once.
        patience = struct.pack("@ll", *divmod(int(PATIENCE_S * 1e6), 10**6))
        link.setsockopt(socket.SOL_SOCKET, socket.SO_SNDTIMEO, patience)
        try:
            link.connect(str(path))
            link.settimeout(PATIENCE_S)
            link.sendall(request)
            with link.makefile("rb") as stream:
                line = stream.readline()
        except (FileNotFoundError, ConnectionRefusedError):
            raise ControlError(
                f"no engine is running on {path}; start one (natengine run), or name another "
                "run directory (natengine --run-dir DIR …, NATENGINE_RUN_DIR)"
            ) from None
        except PermissionError:
            raise ControlError(f"permission denied on {path}: you must be root") from None
        except (TimeoutError, BlockingIOError):
            raise ControlError(f"the engine on {path} has not answered for {PATIENCE_S} s") from None
        except OSError as error:
            raise ControlError(f"cannot talk to an engine on {path}: {error.strerror or error}") from None
    if not line:
        raise ControlError("the engine hung up without an answer; see its log")
    try:
        answer = json.loads(line)
    except ValueError:
        answer = None
    if not isinstance(answer, dict):
        raise ControlError(f"what answers on {path} is not natengine, or it was cut short")
    return answer
