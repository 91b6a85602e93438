"""Who is at the other end of a Unix socket, and what they may ask for."""

from __future__ import annotations

import array
import enum
import os
import socket
import struct

SO_PEERGROUPS = 59                  # asm-generic/socket.h; Python has no name for it
MAX_GROUPS = 256                    # as many as Python reads


class Rights(enum.Enum):
    """What a client may do."""

    NOTHING = enum.auto()
    LOOK = enum.auto()              # see rules, flows, counters
    CHANGE = enum.auto()


def rights_of(link: socket.socket, readers: int | None) -> Rights:
    """Return what the process may do that has connected; the kernel says who it was then.

    Args:
        readers: The group whose members may look; None for nobody but root.
    """
    _, user, group = struct.unpack("3i", link.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12))
    if user in (0, os.geteuid()):
        return Rights.CHANGE
    if readers is not None and readers in (group, *_other_groups(link)):
        return Rights.LOOK
    return Rights.NOTHING


def _other_groups(link: socket.socket) -> array.array[int]:
    try:
        return array.array("I", link.getsockopt(socket.SOL_SOCKET, SO_PEERGROUPS, 4 * MAX_GROUPS))
    except OSError:                 # too many; who is in so many has another way
        return array.array("I")
