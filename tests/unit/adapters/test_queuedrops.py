"""The kernel's list of queues."""

from __future__ import annotations

from pathlib import Path

import pytest

from natengine.adapters import queuedrops
from natengine.adapters.queuedrops import packets_without_room

LISTED = """\
    7   3161     0 2  4016     9     2        5  1
 2663   3161  8192 2 65531   308    17    20808  1
 2664 -31617     0 2 65531     4     0        0  1
"""


@pytest.mark.parametrize(("first", "last", "packets"), [(2663, 2663, 308), (2663, 2664, 312), (8, 9, 0)])
def test_of_our_queues(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, first: int, last: int, packets: int
) -> None:
    """The others' do not count, nor what the socket's buffer had no room for: that is an overrun."""
    listing = tmp_path / "nfnetlink_queue"
    listing.write_text(LISTED)
    monkeypatch.setattr(queuedrops, "QUEUES", listing)
    assert packets_without_room(first, last) == packets


def test_a_kernel_without_the_list(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing is known."""
    monkeypatch.setattr(queuedrops, "QUEUES", tmp_path / "nowhere")
    assert packets_without_room(0, 65535) == 0
