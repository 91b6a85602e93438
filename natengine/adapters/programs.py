"""Other people's programs, run to their end whatever signal comes meanwhile; or started, and left to themselves."""

from __future__ import annotations

import signal
import subprocess

from natengine.errors import HostError

DEADLINE_S = 30
STOP_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


def run(argv: list[str], text: str | None = None) -> subprocess.CompletedProcess[str]:
    """Run a program with `text` as its standard input, and return its status and output.

    Raises:
        HostError: It cannot be started, or has not ended after `DEADLINE_S`.
    """
    # A Ctrl-C goes to the whole process group, and must not cut a transaction short.  The child
    # inherits the mask; a process group of its own would come a moment too late.
    mask = signal.pthread_sigmask(signal.SIG_BLOCK, STOP_SIGNALS)
    try:
        return subprocess.run(argv, input=text, capture_output=True, text=True, timeout=DEADLINE_S, check=False)
    except subprocess.TimeoutExpired:
        raise HostError(f"{argv[0]} has not answered for {DEADLINE_S} s") from None
    except OSError as error:
        raise HostError(f"cannot run {argv[0]}: {error.strerror}") from None
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, mask)


def start(argv: list[str]) -> subprocess.Popen[bytes]:
    """Start a program that says nothing, and do not wait for it.

    Raises:
        HostError: It cannot be started.
    """
    try:
        return subprocess.Popen(argv, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    except OSError as error:
        raise HostError(f"cannot run {argv[0]}: {error.strerror}") from None


def said(result: subprocess.CompletedProcess[str]) -> str:
    """What a program that failed has complained about, in one line; its exit status if it was silent."""
    return " ".join(result.stderr.split()) or str(result.returncode)
