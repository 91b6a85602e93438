"""`natengine run`: the engine in the foreground, until SIGTERM, SIGINT or SIGHUP."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

from natengine.adapters.notify import notify, watchdog_interval_s
from natengine.app.control import ControlServer
from natengine.app.gateway import Gateway, GatewayConfig
from natengine.app.rundir import RunDir
from natengine.app.stopping import StopSignals
from natengine.errors import ConfigError, HostError


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


def run(config: GatewayConfig, rules: RulesFile, signals: StopSignals) -> int:
    """Start a gateway, say `ready`, and serve until told to stop.  Return the exit status.

    Raises:
        ConfigError: The rules are wrong.
        HostError: The machine cannot do it; nothing is left installed.
    """
    if os.geteuid() != 0:
        raise HostError("natengine run must be root: it takes packets from the kernel")
    text = rules.read()
    signals.remember()
    run_dir = RunDir(config.run_dir)
    try:
        _serve(config, text, str(rules.path), signals)
    finally:
        run_dir.close()
    return 0


def _serve(config: GatewayConfig, text: str | None, source: str, signals: StopSignals) -> None:
    gateway = Gateway(config, text, source)
    try:
        control = ControlServer(gateway, config.run_dir)
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


def _say_alive() -> None:
    notify("WATCHDOG=1")
