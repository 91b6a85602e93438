"""`natengine iptables`, `save` and `restore`, on the asking side.

Command lines are read here, so a mistake in one is found before the engine hears of it, and names
are looked up here: the engine never waits for a name server.
"""

from __future__ import annotations

import contextlib
import os
import socket
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

from natengine.app.client import ask
from natengine.errors import ConfigError
from natengine.frontend.command import LISTINGS, Kind
from natengine.frontend.iptables import PROGRAM, help_text, parse_command, render_error, version_text
from natengine.frontend.listing import show
from natengine.frontend.save import parse_restore


def iptables(argv: Sequence[str], run_dir: Path) -> int:
    """Carry out one `natengine iptables` command and return its exit status, as iptables would."""
    try:
        return _iptables(argv, run_dir)
    except ConfigError as error:
        sys.stderr.write(render_error(error))
        return error.exit_status


def _iptables(argv: Sequence[str], run_dir: Path) -> int:
    command = parse_command(argv, _addresses, _port)
    if command.kind in (Kind.HELP, Kind.VERSION):
        print(help_text() if command.kind is Kind.HELP else version_text(), end="")
        return 0
    if command.kind in LISTINGS:
        ruleset, counters = parse_restore(ask(run_dir, "save", counters=True)["text"])
        command.apply(ruleset)                  # refuses a chain that is not there
        print(show(command, ruleset, counters, reverse_lookup=_host_name, service_lookup=_service_name), end="")
        if not command.zero:
            return 0
    answer = ask(run_dir, "change", argv=command.to_argv())
    for warning in answer["warnings"]:
        print(f"{PROGRAM}: warning: {warning}", file=sys.stderr)
    return 0


def save(path: Path, run_dir: Path, *, counters: bool) -> int:
    """Write the rules to a file, whole or not at all."""
    write_atomically(path, ask(run_dir, "save", counters=counters)["text"])
    return 0


def restore(path: Path, run_dir: Path) -> int:
    """Replace the rules by those of a file."""
    try:
        text = path.read_text()
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path}: {error}") from None
    parse_restore(text, source=str(path))       # so that a mistake is reported under the file's name
    for warning in ask(run_dir, "restore", text=text)["warnings"]:
        print(f"natengine restore: warning: {warning}", file=sys.stderr)
    return 0


def write_atomically(path: Path, text: str) -> None:
    """Replace a file by another one with mode 0600; a reader sees the old or the new one, never half of it.

    Raises:
        ConfigError: The file cannot be written there.
    """
    temporary = None
    try:
        path.parent.mkdir(mode=0o755, parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile("w", dir=path.parent, prefix=f".{path.name}.", delete=False) as file:
            temporary = file.name
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
        directory = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY)
        try:
            os.fsync(directory)
        finally:
            os.close(directory)
    except (OSError, UnicodeEncodeError) as error:
        if temporary is not None:
            with contextlib.suppress(OSError):
                os.unlink(temporary)
        why = error.strerror if isinstance(error, OSError) else f"a comment in the rules is no text ({error})"
        raise ConfigError(f"cannot write {path}: {why}") from None


# ── names, as the C library knows them ──────────────────────────────────────────────────────────


def _addresses(name: str) -> list[str]:
    try:
        return list(dict.fromkeys(socket.gethostbyname_ex(name)[2]))
    except OSError:
        return []


def _host_name(address: str) -> str | None:
    try:
        return socket.gethostbyaddr(address)[0]
    except OSError:
        return None


def _port(name: str, proto: str) -> int | None:
    try:
        return socket.getservbyname(name, proto)
    except OSError:
        return None


def _service_name(port: int, proto: str) -> str | None:
    try:
        return socket.getservbyport(port, proto)
    except OSError:
        return None
