"""The state file: the flow table's records, mapped into memory, behind a page that says whose they are.

    0       magic, layout, bytes a record, records, boot id, network namespace, CRC-32 of these
    4096    the records

The kernel keeps what is mapped when a process is killed, so there is nothing to write at the end, and no packet
waits for a disk: the file belongs on a tmpfs such as /run.  Its room is reserved when it is made, for a
page that cannot be had later would be a SIGBUS.

A file is taken over if everything on that page agrees and it is root's alone.  One that is not is set aside
(renamed to FILE.aside), never deleted and never half believed.  What cannot have been a state file, as a device, or as
text that is not called *.state, was named by mistake: it stays where it is, and the engine does not start.
"""

from __future__ import annotations

import contextlib
import fcntl
import mmap
import os
import stat
import zlib
from collections.abc import Iterator
from pathlib import Path
from struct import Struct
from typing import NamedTuple

from natengine.errors import HostError

MAGIC = b"natflows"
SUFFIX = ".state"
RECORDS_AT = 4096

_HEADER = Struct("=8sIIQ16sQ")
_CRC = Struct("=I")
_BOOT_ID = Path("/proc/sys/kernel/random/boot_id")
_NAMESPACE = Path("/proc/thread-self/ns/net")


class Layout(NamedTuple):
    """What the records are; both must be as this program has them."""

    version: int
    record_bytes: int


class Unfit(Exception):
    """Why a file cannot be taken over."""


class NoStateFile(Unfit):
    """It was never one."""


def read_header(descriptor: int, layout: Layout) -> int:
    """Check the first page and return how many records there are.

    Raises:
        Unfit: It is not a state file of this program's, of this boot and of this network namespace.
    """
    header = os.pread(descriptor, _HEADER.size + _CRC.size, 0)
    if len(header) != _HEADER.size + _CRC.size or not header.startswith(MAGIC):
        raise NoStateFile("it is no state file")
    if _CRC.unpack_from(header, _HEADER.size)[0] != zlib.crc32(header[:_HEADER.size]):
        raise Unfit("its header is damaged")
    _, version, record_bytes, records, boot, namespace = _HEADER.unpack_from(header)
    if (version, record_bytes) != layout:
        raise Unfit(f"it has layout {version}, and this version of natengine has layout {layout.version}")
    if boot != _boot():
        raise Unfit("it is from another boot")
    if namespace != _namespace():
        raise Unfit("it is from another network namespace")
    if not records:
        raise Unfit("it has no records")
    if os.fstat(descriptor).st_size < RECORDS_AT + records * record_bytes:
        raise Unfit("its end is missing")
    return int(records)


def _header(layout: Layout, records: int) -> bytes:
    header = _HEADER.pack(MAGIC, *layout, records, _boot(), _namespace())
    return header + _CRC.pack(zlib.crc32(header))


def _boot() -> bytes:
    return bytes.fromhex(_BOOT_ID.read_text().strip().replace("-", ""))


def _namespace() -> int:
    return _NAMESPACE.stat().st_ino


class StateFile:
    """A state file that this process has to itself.

    Attributes:
        memory: The records.
        note: What became of an earlier file that could not be taken over; "" for nothing to say.
    """

    def __init__(self, path: Path, layout: Layout, records: int) -> None:
        """Take the file over, or make a new one.

        Raises:
            HostError: It can neither be opened nor made, or another engine has it.
        """
        self.path = path
        self.note = ""
        self._layout, self._records = layout, records
        self._descriptor = -1
        with self._or_let_go():
            if not self._take_over():
                self._make()
            self.memory = self._map()

    @contextlib.contextmanager
    def _or_let_go(self) -> Iterator[None]:
        """Say in the block's place what to do when it fails."""
        try:
            yield
        except OSError as error:
            self._let_go()
            if isinstance(error, HostError):
                raise
            raise HostError(
                f"cannot use the state file {self.path}: {error.strerror}; name another one with --state FILE, "
                "or do without: --state none"
            ) from None

    @property
    def _size(self) -> int:
        return RECORDS_AT + self._records * self._layout.record_bytes

    def _take_over(self) -> bool:
        """Open the file; False if there is none (any more)."""
        try:
            if not stat.S_ISREG(os.lstat(self.path).st_mode):       # a device must not even be opened
                raise self._not_ours("no regular file")
            self._descriptor = os.open(self.path, os.O_RDWR | os.O_NOFOLLOW | os.O_CLOEXEC)
        except FileNotFoundError:
            return False
        self._lock()
        try:
            self._check()
        except Unfit as why:
            if isinstance(why, NoStateFile) and os.fstat(self._descriptor).st_size and self.path.suffix != SUFFIX:
                raise self._not_ours("no state file") from None
            self._set_aside(str(why))
            return False
        return True

    def _not_ours(self, what: str) -> HostError:
        return HostError(
            f"{self.path} is {what}, and stays as it is; name another one with --state FILE, "
            "or do without: --state none"
        )

    def _check(self) -> None:
        records = read_header(self._descriptor, self._layout)
        about = os.fstat(self._descriptor)
        if about.st_uid != os.geteuid() or about.st_mode & 0o077 or about.st_nlink != 1:
            raise Unfit("others than root may have written to it")
        if records > self._records:
            raise Unfit(f"it is a table of {records} flows, and max_flows is {self._records}")
        if records < self._records:
            os.posix_fallocate(self._descriptor, 0, self._size)
            os.pwrite(self._descriptor, _header(self._layout, self._records), 0)

    def _lock(self) -> None:
        try:
            fcntl.flock(self._descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise HostError(
                f"another engine has the state file {self.path}; name another one with --state FILE"
            ) from None

    def _make(self) -> None:
        """Write a new file beside, and put it where it belongs when it is whole."""
        new = self.path.with_name(f"{self.path.name}.new")
        new.unlink(missing_ok=True)
        flags = os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
        self._descriptor = os.open(new, flags, 0o600)
        try:
            self._lock()
            os.posix_fallocate(self._descriptor, 0, self._size)
            os.pwrite(self._descriptor, _header(self._layout, self._records), 0)
            new.rename(self.path)
        except BaseException:
            new.unlink(missing_ok=True)
            raise

    def _map(self) -> memoryview:
        return memoryview(mmap.mmap(self._descriptor, self._size))[RECORDS_AT:]

    def start_over(self, why: str) -> None:
        """Set aside what turned out to be unfit, and begin with an empty file.

        Raises:
            HostError: There can be no new one.
        """
        with self._or_let_go():
            self._set_aside(why)
            self._make()
            self.memory = self._map()

    def _set_aside(self, why: str) -> None:
        aside = self.path.with_name(f"{self.path.name}.aside")
        self.path.rename(aside)
        self._let_go()
        self.note = f"{self.path}: {why}; set aside as {aside.name}, and started without flows"

    def _let_go(self) -> None:
        """Give up the lock, which the mapping would keep for as long as it lives."""
        if self._descriptor >= 0:
            with contextlib.suppress(OSError):
                fcntl.flock(self._descriptor, fcntl.LOCK_UN)
            os.close(self._descriptor)
            self._descriptor = -1

    def close(self, *, keep: bool) -> None:
        """Leave the file to the next engine, or remove it where there is nothing in it to `keep`."""
        if not keep:
            self.path.unlink(missing_ok=True)
        self._let_go()


def read_records(path: Path, layout: Layout) -> tuple[memoryview, int]:
    """Return a private copy of the records of a file that no engine uses, and how many there are room for.

    Raises:
        HostError: It cannot be read, or an engine uses it.
        Unfit: See `read_header`.
    """
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except OSError as error:
        raise HostError(f"{path}: {error.strerror}") from None
    try:
        fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
        records = read_header(descriptor, layout)
        size = RECORDS_AT + records * layout.record_bytes
        return memoryview(mmap.mmap(descriptor, size, access=mmap.ACCESS_COPY))[RECORDS_AT:], records
    except BlockingIOError:
        raise HostError(f"{path}: an engine is using it; what is in it, natengine conntrack -L lists") from None
    finally:
        fcntl.flock(descriptor, fcntl.LOCK_UN)
        os.close(descriptor)
