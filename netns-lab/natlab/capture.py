"""tcpdump inside a node, as a context manager."""

from __future__ import annotations

import contextlib
import os
import re
import select
import shutil
import signal
import subprocess
import tempfile
import time
from pathlib import Path
from types import TracebackType
from typing import IO, Any

from .errors import LabError
from .node import Node
from .patience import PATIENCE

START_DEADLINE_S = 20.0 * PATIENCE
DRAIN_DEADLINE_S = 5.0 * PATIENCE
STOP_DEADLINE_S = 10.0 * PATIENCE
# In immediate mode the ring has a slot of 64 KiB for every packet, however short it is; the 2 MiB
# that are the default hold 32 packets.
BUFFER_KIB = 64 * 1024
COUNTERS = re.compile(
    r"(\d+) packets? captured,?\s+(\d+) packets? received by filter,?\s+(\d+) packets? dropped"
)


class Capture:
    """Records what passes an interface, from the start of the block to its end.

    Everything that the interface saw before the block's end is in the file: at the end the capture
    waits until tcpdump has written every packet that the kernel has taken for it.

    Attributes:
        path: The pcap file.  It is the lab's and goes with it.
        lost: Packets that the kernel had no room for, in a burst of more than a thousand.
    """

    def __init__(self, node: Node, interface: str, filter: str, directory: Path) -> None:
        self._node = node
        self._interface = interface
        self._filter = filter
        self._directory = directory
        self._process: subprocess.Popen[bytes] | None = None
        self._said = ""
        self.path = Path()
        self.lost = 0

    def __enter__(self) -> Capture:
        if shutil.which("tcpdump") is None:
            raise LabError("tcpdump is not installed")
        self.path = self._new_file()
        # -Z root: it would give up root and then could not open the file.
        # --immediate-mode and -U: a packet is in the file as soon as it was seen.
        argv = ["tcpdump", "-n", "-Z", "root", "--immediate-mode", "-U", "-B", str(BUFFER_KIB)]
        argv += ["-i", self._interface, "-w", str(self.path), "--", self._filter]
        try:
            self._process = self._node.popen(
                argv, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE
            )
            self._read_until("listening on", time.monotonic() + START_DEADLINE_S)
        except BaseException:
            self._end()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            if kind is None:
                self._drain()
        finally:
            self._end()

    def packets(self) -> Any:
        """The packets so far, as scapy reads them; needs scapy.

        Raises:
            LabError: Packets were lost.  Whoever can do with a part reads `path`.
        """
        if self.lost:
            raise LabError(f"tcpdump on {self._node.name} {self._interface} lost {self.lost} packets")
        # scapy is GPL and slow to import: only for those who ask.  The layers register themselves on import.
        from scapy.layers import inet, l2  # noqa: F401
        from scapy.utils import rdpcap

        return rdpcap(str(self.path))

    def _new_file(self) -> Path:
        prefix = f"{self._node.name}-{self._interface}-"
        try:
            descriptor, path = tempfile.mkstemp(dir=self._directory, prefix=prefix, suffix=".pcap")
        except FileNotFoundError:
            raise LabError(f"there is no {self._directory}: is the lab up?") from None
        os.close(descriptor)
        return Path(path)

    def _drain(self) -> None:
        """Wait until every packet that the kernel let through the filter has been written.

        Raises:
            LabError: tcpdump has ended before its time, or does not catch up.
        """
        assert self._process is not None
        deadline = time.monotonic() + DRAIN_DEADLINE_S
        while True:
            self._said = ""
            self._process.send_signal(signal.SIGUSR1)   # tcpdump answers with its counters
            self._read_until("dropped by kernel", deadline)
            if match := COUNTERS.search(self._said):
                written, received, self.lost = map(int, match.groups())
                if written + self.lost >= received:   # "received" has the lost ones in it
                    return
            time.sleep(0.005)

    def _read_until(self, text: str, deadline: float) -> None:
        """Collect what tcpdump says until it has said `text`.

        Raises:
            LabError: It ended, or was silent, before that.
        """
        assert self._process is not None and self._process.stderr is not None
        stderr: IO[bytes] = self._process.stderr
        while text not in self._said:
            ready, _, _ = select.select([stderr], [], [], max(0.0, deadline - time.monotonic()))
            piece = stderr.read1() if ready else b""  # type: ignore[attr-defined]
            if not piece:
                said = (self._said.strip() or "no answer").splitlines()[-1]
                raise LabError(f"tcpdump on {self._node.name} {self._interface}: {said}")
            self._said += piece.decode(errors="replace")

    def _end(self) -> None:
        process = self._process
        if process is None:
            return
        with contextlib.suppress(ProcessLookupError):
            process.send_signal(signal.SIGINT)
        try:
            process.wait(STOP_DEADLINE_S)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
        if process.stderr is not None:
            process.stderr.close()
