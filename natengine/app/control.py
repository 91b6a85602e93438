"""The control socket: one JSON object a line in, one out, over a Unix socket that only root can open.

    {"command": "change",    "argv": [...]}       an iptables command that changes something
    {"command": "save",      "counters": bool}    the rules as iptables-save text ("table": one of them)
    {"command": "restore",   "text": "..."}       all rules at once ("counters", "flush", "only": see RestoreOptions;
                                                  "test", "flush_flows": see Gateway.restore)
    {"command": "status"}                         what `natengine status --json` prints
    {"command": "conntrack", "argv": [...]}       a conntrack command

The answer is {"ok": true, …} or {"ok": false, "error": "…", "kind": "…", "exit_status": n}.  The
requests are read here, in threads of their own; whatever touches the engine is handed to the packet
thread.
"""

from __future__ import annotations

import contextlib
import errno
import json
import os
import socket
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from natengine.adapters.clock import now_ns
from natengine.app import conntrack
from natengine.app.client import SOCKET_NAME
from natengine.app.gateway import Gateway
from natengine.errors import ConfigError, ControlError, HostError, NatengineError
from natengine.frontend.save import RestoreOptions
from natengine.rules.model import TableName

MAX_REQUEST = 16 << 20              # bytes: a restore of some hundred thousand rules
PATIENCE_S = 10                     # for a client to send the rest of its line
MAX_CLIENTS = 32
OUT_OF_DESCRIPTORS_S = 0.1

Request = dict[str, Any]


class ControlServer:
    """Listens on the control socket and answers for one gateway."""

    def __init__(self, gateway: Gateway, run_dir: Path) -> None:
        """Bind the socket, mode 0600.

        Raises:
            HostError: Another engine answers there already.
        """
        self._gateway = gateway
        self._path = run_dir / SOCKET_NAME
        self._commands: dict[str, Callable[[Request], Request]] = {
            "change": self._change,
            "save": self._save,
            "restore": self._restore,
            "status": self._status,
            "conntrack": self._conntrack,
        }
        self._slots = threading.BoundedSemaphore(MAX_CLIENTS)
        self._path.unlink(missing_ok=True)      # left behind by an engine that was killed
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC)
        before = os.umask(0o177)
        try:
            self._socket.bind(str(self._path))
        except OSError as error:
            self._socket.close()
            raise HostError(f"cannot make the control socket {self._path}: {error.strerror}") from None
        finally:
            os.umask(before)
        self._socket.listen(MAX_CLIENTS)

    def start(self) -> None:
        """Begin to answer, in the background."""
        threading.Thread(target=self._accept, name="control", daemon=True).start()

    def close(self) -> None:
        """Stop answering and remove the socket."""
        self._path.unlink(missing_ok=True)
        with contextlib.suppress(OSError):
            self._socket.shutdown(socket.SHUT_RDWR)
        self._socket.close()

    def _accept(self) -> None:
        while True:
            try:
                client, _ = self._socket.accept()
            except OSError as error:
                if error.errno not in (errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM):
                    return                      # closed
                time.sleep(OUT_OF_DESCRIPTORS_S)        # the ones there are come back
                continue
            self._slots.acquire()
            threading.Thread(target=self._serve, args=(client,), name="control client", daemon=True).start()

    def _serve(self, client: socket.socket) -> None:
        """Answer the one request of a connection."""
        try:
            with client:
                client.settimeout(PATIENCE_S)
                answer = self._answer(read_line(client))
                client.sendall(json.dumps(answer).encode() + b"\n")
        except (OSError, ControlError):
            pass                                # the client went away, or never said anything
        finally:
            self._slots.release()

    def _answer(self, line: bytes) -> Request:
        try:
            request = json.loads(line)
            handler = self._commands[request["command"]]
        except (ValueError, KeyError, TypeError, RecursionError):
            return _refusal(ConfigError(f"not a request: {line[:80]!r}"))
        try:
            return {"ok": True, **handler(request)}
        except NatengineError as error:
            return _refusal(error)
        except TimeoutError:
            return _refusal(ControlError("the engine is busy and has not got round to it; it may do so later"))
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            return _refusal(ConfigError(f"request {request.get('command')!r}: {type(error).__name__}: {error}"))

    def _change(self, request: Request) -> Request:
        argv = _words(request)
        return {"warnings": self._gateway.call(lambda: self._gateway.change(argv))}

    def _save(self, request: Request) -> Request:
        counters = bool(request.get("counters"))
        table = TableName(request["table"]) if request.get("table") else None
        return {"text": self._gateway.call(lambda: self._gateway.save_text(counters=counters, table=table))}

    def _restore(self, request: Request) -> Request:
        text = str(request["text"])
        only = TableName(request["only"]) if request.get("only") else None
        options = RestoreOptions(bool(request.get("counters", True)), bool(request.get("flush", True)), only)
        test, flush_flows = bool(request.get("test")), bool(request.get("flush_flows"))
        return {"warnings": self._gateway.call(
            lambda: self._gateway.restore(text, options, test=test, flush_flows=flush_flows)
        )}

    def _status(self, _request: Request) -> Request:
        return {"status": self._gateway.call(self._gateway.status)}

    def _conntrack(self, request: Request) -> Request:
        answer = conntrack.run(
            _words(request),
            lambda: self._gateway.call(self._gateway.flows),
            lambda ids: self._gateway.call(lambda: self._gateway.delete_flows(ids)),
            now_ns(),
        )
        return answer._asdict()


def _words(request: Request) -> list[str]:
    return [str(word) for word in request["argv"]]


def _refusal(error: NatengineError) -> Request:
    return {
        "ok": False, "error": str(error), "kind": type(error).__name__, "exit_status": error.exit_status,
    }


def read_line(link: socket.socket) -> bytes:
    """Read one line of at most MAX_REQUEST bytes.

    Raises:
        ControlError: The other side hung up before the end of the line, or the line is too long.
    """
    chunks, size = [], 0
    while True:
        chunk = link.recv(65536)
        if not chunk:
            raise ControlError("the other side hung up")
        chunks.append(chunk)
        size += len(chunk)
        if chunk.endswith(b"\n"):
            return b"".join(chunks)
        if size > MAX_REQUEST:
            raise ControlError(f"more than {MAX_REQUEST} bytes in one line")
