"""`natengine run`: the engine in the foreground, until SIGTERM, SIGINT or SIGHUP."""

from __future__ import annotations

import os
import resource
import sys
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from natengine.adapters.forwarding import Forwarding
from natengine.adapters.hook_backends import remove_leftovers
from natengine.adapters.notify import notify, watchdog_interval_s
from natengine.app.control import ControlServer
from natengine.app.gateway import Gateway, GatewayConfig
from natengine.app.rundir import RunDir
from natengine.app.stopping import StopSignals
from natengine.errors import ConfigError, HostError
from natengine.frontend.toml import read_settings
from natengine.settings import HookBackEnd, Settings

OPEN_FILES = 128                    # its own, programs that it starts, and clients of the control socket
HAND_OVER_S = 0.0005                # at most so long a thread that reads rules keeps the packet thread from Python


@dataclass(frozen=True)
class RulesFile:
    """Where the rules come from; `required` when somebody named the file on the command line."""

    path: Path
    required: bool

    def read(self) -> str | None:
        """Return the text, or None for "no rules" where the file may be missing.

        Raises:
            ConfigError: It cannot be read.
        """
        try:
            return self.path.read_text()
        except FileNotFoundError:
            if not self.required:
                return None
            raise ConfigError(f"{self.path}: no such file; write one with: natengine save --file {self.path}") from None
        except (OSError, UnicodeDecodeError) as error:
            raise ConfigError(f"{self.path}: {error}") from None


def read_settings_file(path: Path | None, usual: Path, **said: int | HookBackEnd | None) -> Settings:
    """Return the settings of a file, and over them those `said` by option.

    Args:
        path: The file; None for the `usual` one, which need not be there.

    Raises:
        ConfigError: It cannot be read, or is wrong.
    """
    file = path or usual
    try:
        settings = read_settings(file.read_text(), str(file))
    except FileNotFoundError:
        if path is not None:
            raise ConfigError(f"{path}: no such file") from None
        settings = Settings()
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{file}: {error}") from None
    options: dict[str, Any] = {key: value for key, value in said.items() if value is not None}
    settings = replace(settings, **options)
    if settings.max_flows < 1:
        raise ConfigError(f"{file}: max_flows is at least 1")
    return settings


def run(config: GatewayConfig, rules: RulesFile, signals: StopSignals) -> int:
    """Start a gateway, say `ready`, and serve until told to stop.  Return the exit status.

    Raises:
        ConfigError: The rules are wrong.
        HostError: The machine cannot do it; nothing is left installed.
    """
    if os.geteuid() != 0:
        raise HostError("natengine run must be root: it takes packets from the kernel")
    allow_open_files()
    text = rules.read()
    signals.remember()
    run_dir = RunDir(config.run_dir, config.readers)
    try:
        _serve(config, text, str(rules.path), signals)
    finally:
        run_dir.close()
    return 0


def allow_open_files() -> None:
    """Raise a limit that is too low (`ulimit -n`), before something fails for want of a descriptor.

    Raises:
        HostError: We may not.
    """
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft >= OPEN_FILES:
        return
    try:
        resource.setrlimit(resource.RLIMIT_NOFILE, (OPEN_FILES, max(hard, OPEN_FILES)))
    except (OSError, ValueError):       # without CAP_SYS_RESOURCE the hard limit stays
        raise HostError(
            f"natengine run may have {soft} files open and needs {OPEN_FILES}: ulimit -n {OPEN_FILES} "
            f"(in a unit: LimitNOFILE={OPEN_FILES})"
        ) from None


def _serve(config: GatewayConfig, text: str | None, source: str, signals: StopSignals) -> None:
    sys.setswitchinterval(HAND_OVER_S)
    gateway = Gateway(config, text, source)
    try:
        control = ControlServer(gateway, config.run_dir, config.readers)
        try:
            control.start()
            interval = watchdog_interval_s()
            if interval is not None:
                gateway.loop.every(int(interval * 1e9), _say_alive)
            signals.hand_over(gateway.loop.stop)
            if not signals.received:
                print("ready", flush=True)
                notify("READY=1", f"STATUS=translating with the {gateway.backend} fast path")
            gateway.loop.run()
            notify("STOPPING=1")
        finally:
            signals.hand_over(None)     # the way out must not be cut short by a second Ctrl-C
            control.close()
    finally:
        gateway.close()


def remove_hooks(path: Path) -> None:
    """Take out the guard that an engine has left, or the hooks of one that was killed.

    Raises:
        HostError: Not root, an engine is running with this run directory, or they cannot be removed.
    """
    if os.geteuid() != 0:
        raise HostError("natengine hooks must be root: it changes the kernel's rules")
    run_dir = RunDir(path)
    try:
        remove_leftovers()
        Forwarding(path).restore()
    finally:
        run_dir.close()


def _say_alive() -> None:
    notify("WATCHDOG=1")
