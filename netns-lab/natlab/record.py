"""What a lab has made: a JSON file, written before and after every step.

    /run/natlab/PREFIX.json    the record; its presence means that something may have to be taken down
    /run/natlab/PREFIX/        logs and captures; a lock on this directory serialises up and down
"""

from __future__ import annotations

import contextlib
import dataclasses
import fcntl
import json
import os
import re
import shutil
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from . import interrupts, processes
from .errors import LabError
from .namespace import Identity
from .plan import LinkKind

RUN_DIR = Path("/run/natlab")
LOCK_INTERVAL_S = 0.02
# Names of files and namespaces are made from it: no slash, no dot, no leading dash.
PREFIX_PATTERN = re.compile(r"[A-Za-z][A-Za-z0-9_-]{0,31}")


@dataclass
class Server:
    """A detached server process."""

    node: str
    name: str
    ports: list[tuple[str, int]]
    pid: int
    start_time: int

    @property
    def alive(self) -> bool:
        return processes.start_time(self.pid) == self.start_time


@dataclass
class Record:
    """Everything that one lab has made so far.

    Attributes:
        complete: False while `up` works, and for ever if it was killed.
        namespaces: By full name; None while it is being made.
        absent: What could not be started, and why.
    """

    prefix: str
    boot_id: str
    complete: bool = False
    links: LinkKind = LinkKind.VETH
    namespaces: dict[str, Identity | None] = field(default_factory=dict)
    servers: list[Server] = field(default_factory=list)
    absent: list[str] = field(default_factory=list)

    @property
    def is_of_this_boot(self) -> bool:
        """False for a record that outlived a boot, on a disk; its pids and identities mean nothing now."""
        return self.boot_id == processes.boot_id()

    def save(self) -> None:
        """Write the record, all or nothing."""
        path = record_path(self.prefix)
        scratch = path.with_suffix(".new")
        scratch.write_text(json.dumps(dataclasses.asdict(self), indent=2) + "\n")
        scratch.replace(path)


def check_prefix(prefix: str) -> str:
    """Return `prefix` if it can be used in names.

    Raises:
        LabError: It cannot.
    """
    if not PREFIX_PATTERN.fullmatch(prefix):
        raise LabError(f"{prefix!r} cannot be a prefix: a letter, then up to 31 letters, digits, '-' or '_'")
    return prefix


def record_path(prefix: str) -> Path:
    """Where the record of the lab is."""
    return RUN_DIR / f"{prefix}.json"


def files_dir(prefix: str) -> Path:
    """Where the lab's logs and captures are."""
    return RUN_DIR / prefix


def load(prefix: str) -> Record | None:
    """Read the record of a lab; None if there is none.

    Raises:
        LabError: The file is damaged.
    """
    path = record_path(prefix)
    try:
        text = path.read_text()
    except FileNotFoundError:
        return None
    try:
        fields = json.loads(text)
        fields["links"] = LinkKind(fields["links"])
        fields["namespaces"] = {
            name: item and Identity(**item) for name, item in fields["namespaces"].items()
        }
        fields["servers"] = [_server(item) for item in fields["servers"]]
        return Record(**fields)
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise LabError(f"{path} is damaged ({error}): look what still runs, then delete it") from error


def forget(prefix: str) -> None:
    """Delete the record, the lab's files, and the common directory after the last lab."""
    shutil.rmtree(files_dir(prefix), ignore_errors=True)
    record_path(prefix).with_suffix(".new").unlink(missing_ok=True)
    record_path(prefix).unlink(missing_ok=True)
    with contextlib.suppress(OSError):   # another lab is there, or just gone
        RUN_DIR.rmdir()


@contextlib.contextmanager
def locked(prefix: str) -> Iterator[None]:
    """Hold the lab's lock; wait for whoever else takes it up or down.  Makes the lab's directory."""
    descriptor = _open_locked(files_dir(prefix))
    try:
        yield
    finally:
        os.close(descriptor)


def _open_locked(directory: Path) -> int:
    while True:
        try:
            directory.mkdir(mode=0o755, parents=True, exist_ok=True)
            descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        except FileNotFoundError:   # a `down` removed it between the two calls
            continue
        try:
            _lock(descriptor)
            if directory.exists() and os.path.samestat(os.fstat(descriptor), directory.stat()):
                return descriptor
        except BaseException:
            os.close(descriptor)
            raise
        os.close(descriptor)   # we have waited for a directory that is gone now


def _lock(descriptor: int) -> None:
    while True:
        try:
            return fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            interrupts.check()   # a blocking call would be resumed after the signal, and not end
            time.sleep(LOCK_INTERVAL_S)


def _server(item: dict[str, object]) -> Server:
    server = Server(**item)  # type: ignore[arg-type]
    server.ports = [(protocol, port) for protocol, port in server.ports]
    return server
