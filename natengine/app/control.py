"""The control socket: one JSON object a line in, one out, over a Unix socket that only root can open.

A group may be let in to look: whoever is in it gets status, save, and conntrack's -L and -C.

    {"command": "change",    "argv": [...]}       an iptables command that changes something
    {"command": "save",      "counters": bool}    the rules as iptables-save text ("table": one of them)
    {"command": "restore",   "text": "..."}       all rules at once ("counters", "flush", "only": see RestoreOptions;
                                                  "test", "flush_flows": see Changes.restore)
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
from natengine.app.peer import Rights, rights_of
from natengine.errors import ConfigError, ControlError, HostError, NatengineError
from natengine.flow.records import FlowInfo
from natengine.frontend.save import RestoreOptions
from natengine.rules.model import TableName

MAX_REQUEST = 16 << 20              # bytes: a restore of some hundred thousand rules
MAX_QUESTION = 16 << 10             # from those who may only look
PATIENCE_S = 10                     # for a client to send its line, and to take its answer
MAX_CLIENTS = 32
MAX_READERS = 16                    # at once; more are sent away, so that none keeps root waiting
OUT_OF_DESCRIPTORS_S = 0.1

MUST_BE_ROOT = "permission denied: you must be root"
TOO_MANY = "control socket: %d sent away; too many of the group were asking at once"

Request = dict[str, Any]


class ControlServer:
    """Listens on the control socket and answers for one gateway."""

    def __init__(self, gateway: Gateway, run_dir: Path, readers: int | None = None) -> None:
        """Bind the socket, mode 0600; 0660 where there is a group of `readers`, by its number.

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
        self._readers = readers
        self._sent_away = 0                     # for want of a slot
        self._slots = {
            Rights.CHANGE: threading.BoundedSemaphore(MAX_CLIENTS),
            Rights.LOOK: threading.BoundedSemaphore(MAX_READERS),
        }
        self._path.unlink(missing_ok=True)      # left behind by an engine that was killed
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC)
        before = os.umask(0o177)
        try:
            self._socket.bind(str(self._path))
            if readers is not None:
                os.chown(self._path, -1, readers)
                self._path.chmod(0o660)
        except OSError as error:
            self._socket.close()
            raise HostError(f"cannot make the control socket {self._path}: {error.strerror}") from None
        finally:
            os.umask(before)
        self._socket.listen(socket.SOMAXCONN)      # who finds it full is refused at once

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
            rights = rights_of(client, self._readers)
            if rights is Rights.NOTHING or not self._slots[rights].acquire(blocking=rights is Rights.CHANGE):
                self._send_away(client, rights)
                continue
            threading.Thread(target=self._serve, args=(client, rights), name="control client", daemon=True).start()

    def _send_away(self, client: socket.socket, rights: Rights) -> None:
        """Say why, without waiting for anybody."""
        why = MUST_BE_ROOT
        if rights is not Rights.NOTHING:
            why = "too many are asking; try again in a moment"
            self._sent_away += 1
            self._gateway.log.tell("control", self._sent_away, TOO_MANY, now_ns())
        with client, contextlib.suppress(OSError):
            client.setblocking(False)
            client.send(json.dumps(_refusal(ControlError(why))).encode() + b"\n")

    def _serve(self, client: socket.socket, rights: Rights) -> None:
        """Answer the one request of a connection."""
        try:
            with client:
                line = read_line(client, MAX_REQUEST if rights is Rights.CHANGE else MAX_QUESTION)
                client.settimeout(PATIENCE_S)
                client.sendall(json.dumps(self._answer(line, rights)).encode() + b"\n")
        except (OSError, ControlError):
            pass                                # the client went away, or never said anything
        finally:
            self._slots[rights].release()

    def _answer(self, line: bytes, rights: Rights) -> Request:
        try:
            request = json.loads(line)
            handler = self._commands[request["command"]]
        except (ValueError, KeyError, TypeError, RecursionError):
            return _refusal(ConfigError(f"not a request: {line[:80]!r}"))
        if rights is not Rights.CHANGE and not _only_looks(request):
            return _refusal(ControlError(MUST_BE_ROOT))
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
        return {"warnings": self._gateway.changes.change(argv)}

    def _save(self, request: Request) -> Request:
        counters = bool(request.get("counters"))
        table = TableName(request["table"]) if request.get("table") else None
        return {"text": self._gateway.changes.save_text(counters=counters, table=table)}

    def _restore(self, request: Request) -> Request:
        text = str(request["text"])
        only = TableName(request["only"]) if request.get("only") else None
        options = RestoreOptions(bool(request.get("counters", True)), bool(request.get("flush", True)), only)
        test, flush_flows = bool(request.get("test")), bool(request.get("flush_flows"))
        return {"warnings": self._gateway.changes.restore(text, options, test=test, flush_flows=flush_flows)}

    def _status(self, _request: Request) -> Request:
        return {"status": {
            **self._gateway.call(self._gateway.status),
            "packets_shed": self._gateway.shed_packets(),
            "control_clients_sent_away": self._sent_away,
        }}

    def _conntrack(self, request: Request) -> Request:
        answer = conntrack.run(
            _words(request),
            self._flows,
            lambda ids: self._gateway.call(lambda: self._gateway.delete_flows(ids)),
            now_ns(),
        )
        return answer._asdict()

    def _flows(self) -> list[FlowInfo]:
        """Copy the table a piece at a time: packets go on in between."""
        flows: list[FlowInfo] = []
        at: int | None = 0
        while at is not None:
            some, at = self._gateway.call(lambda first=at: self._gateway.flows(first))     # type: ignore[misc]
            flows += some
        return flows


def _only_looks(request: Request) -> bool:
    """Whether a request changes nothing, whoever sends it."""
    if request["command"] == "conntrack":
        return conntrack.only_looks(_words(request)) if isinstance(request.get("argv"), list) else False
    return request["command"] in ("status", "save")


def _words(request: Request) -> list[str]:
    return [str(word) for word in request["argv"]]


def _refusal(error: NatengineError) -> Request:
    return {
        "ok": False, "error": str(error), "kind": type(error).__name__, "exit_status": error.exit_status,
    }


def read_line(link: socket.socket, at_most: int) -> bytes:
    """Read one line of `at_most` bytes, all in PATIENCE_S.

    Raises:
        ControlError: The other side hung up before the end of the line, or the line is too long.
        TimeoutError: It took too long, however busy the other side was.
    """
    chunks, size = [], 0
    deadline = time.monotonic() + PATIENCE_S
    while True:
        link.settimeout(max(deadline - time.monotonic(), 0.001))
        chunk = link.recv(65536)
        if not chunk:
            raise ControlError("the other side hung up")
        chunks.append(chunk)
        size += len(chunk)
        if chunk.endswith(b"\n"):
            return b"".join(chunks)
        if size > at_most:
            raise ControlError(f"more than {at_most} bytes in one line")
