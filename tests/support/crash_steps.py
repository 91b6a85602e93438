"""A few steps in the life of a flow table, for tests that kill it in the middle of one.

As a program, `python -m support.crash_steps FILE`, it takes the steps on the compiled table with its records in
FILE, and lets itself be traced (ptrace(2)); the byte behind the records says which step it is at.
"""

from __future__ import annotations

import ctypes
import gc
import mmap
import os
import signal
import sys
from collections.abc import Callable
from pathlib import Path as FilePath

from differential.packets import ACK, FIN, RST, SYN, packet_of
from support.backends import table_config

from natengine.fastpath import FastPath, select
from natengine.flow.image import RECORD_BYTES
from natengine.flow.records import Allow, FlowSpec, Path
from natengine.vocab import Hook, Proto

CAPACITY = 5
AT = CAPACITY * RECORD_BYTES            # of the byte that counts the steps
FINISHED = 255
PTRACE_TRACEME = 0

OUT, BACK = Hook.POSTROUTING, Hook.PREROUTING
TCP = FlowSpec(Proto.TCP, 0x0A01000B, 40000, 0xCB007101, 50000, 0xCB007102, 80, True, 3, 4, Allow.ALL)
UDP = TCP._replace(proto=Proto.UDP, outside_port=53000, peer_port=53)
NEXT = TCP._replace(inside_ip=0x0A01000C, inside_port=1, outside_port=2, from_inside=False)

CALL = TCP._replace(proto=Proto.GRE, inside_port=7, outside_port=8, peer_port=900)      # of PPTP, with its three ids
# two hosts inside through 203.0.113.1: `nat/hairpin.py` has what each of the flows is for
FIRST = UDP._replace(
    inside_ip=0x0A01000C, inside_port=6000, outside_port=6000, peer_ip=0x0A01000B, peer_port=5000, from_inside=False,
    uplink_ifindex=3,
)
SECOND = UDP._replace(inside_port=5000, outside_port=5001, peer_ip=0x0A01000C, peer_port=6000, uplink_ifindex=3)

Step = Callable[[FastPath], object]


def install(spec: FlowSpec) -> Step:
    """A flow begins; it may be there already."""
    return lambda table: table.install(spec, 0)


def remove(spec: FlowSpec) -> Step:
    """A flow ends; it may have ended already."""
    key = spec.leaving
    return lambda table: table.remove(table.find(key))


def passes(spec: FlowSpec, hook: Hook, flags: int = ACK, seq: int = 0, ack: int = 0, data: int = 0) -> Step:
    """A packet of a flow has to get through; also one that is sent again."""
    packet = bytes(packet_of(spec, hook, flags=flags, seq=seq, ack=ack, data=bytes(data)))
    at_hook, translated = int(hook), int(Path.TRANSLATED)       # every instruction counts

    def step(table: FastPath) -> None:
        path = table.translate(bytearray(packet), at_hook, 1_000_000_000)
        assert path == translated, path

    return step


def asked_again(*specs: FlowSpec) -> Step:
    """The rules change, and FORWARD answers as before."""
    keys = [spec.leaving for spec in specs]

    def step(table: FastPath) -> None:
        table.invalidate()
        for key in keys:
            table.approve(table.find(key), 7, 5)

    return step


def fragment(spec: FlowSpec) -> Step:
    """A fragment is counted that was rewritten elsewhere."""
    key = spec.leaving
    return lambda table: table.touch(table.find(key), 4, 1500, 2_000_000_000)


def approve_all(table: FastPath) -> None:
    """Let FORWARD allow everything, as it does after a restart for each flow that a packet comes for."""
    for flow in table.snapshot():
        table.approve(flow.flow_id, Allow.ALL, 4)


STEPS: tuple[Step, ...] = (
    install(TCP),
    passes(TCP, OUT, SYN, seq=100),
    passes(TCP, BACK, SYN | ACK, seq=9000, ack=101),
    passes(TCP, OUT, ACK, seq=101, ack=9001),
    install(UDP),
    passes(UDP, OUT),
    passes(TCP, OUT, ACK, seq=101, ack=9001, data=50),
    passes(TCP, BACK, ACK, seq=9001, ack=151, data=70),
    passes(UDP, BACK),
    asked_again(TCP, UDP),
    passes(UDP, OUT),
    fragment(UDP),
    passes(TCP, OUT, ACK | FIN, seq=151, ack=9071),
    passes(TCP, BACK, ACK | FIN, seq=9071, ack=152),
    passes(TCP, OUT, ACK, seq=152, ack=9072),
    remove(TCP),
    install(NEXT),                      # where the other one was
    passes(NEXT, BACK, SYN, seq=100),
    passes(NEXT, OUT, SYN | ACK, seq=9000, ack=101),
    passes(NEXT, BACK, RST, seq=101),
    install(CALL),
    passes(CALL, OUT),
    passes(CALL, BACK),
    install(FIRST),
    passes(FIRST, BACK),
    install(SECOND),
    passes(SECOND, OUT),
    passes(SECOND, BACK),
    passes(FIRST, OUT),
    remove(FIRST),
    remove(SECOND),                     # it goes with the first
    remove(CALL),
    lambda table: table.expire(400_000_000_000, 100),
)


def main(path: FilePath) -> None:
    """Take all steps, one instruction at a time if the parent wants it so."""
    if ctypes.CDLL(None, use_errno=True).ptrace(PTRACE_TRACEME, 0, 0, 0):
        sys.exit("ptrace is not allowed here")
    with path.open("r+b") as file:
        shared = mmap.mmap(file.fileno(), 0)
    table = select("cython").FastPath(table_config(CAPACITY), memoryview(shared)[:AT])
    gc.disable()
    os.kill(os.getpid(), signal.SIGSTOP)
    for number, step in enumerate(STEPS):
        shared[AT] = number
        step(table)
    shared[AT] = FINISHED


if __name__ == "__main__":
    main(FilePath(sys.argv[1]))
