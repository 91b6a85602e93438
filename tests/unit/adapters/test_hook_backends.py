"""Which back end is taken, and what becomes of the other one's leftovers; nothing is run."""

from __future__ import annotations

import pytest

from natengine.adapters import hook_backends
from natengine.adapters.hook_backends import open_hooks, remove_leftovers
from natengine.errors import HostError


class Kernel:
    """What is installed on the machine, what its kernel can do, and what is in force."""

    def __init__(self) -> None:
        self.programs = {"nft", "iptables"}
        self.can_nft = True
        self.installed: set[str] = set()


@pytest.fixture
def kernel(monkeypatch: pytest.MonkeyPatch) -> Kernel:
    kernel = Kernel()

    def back_end(own_name: str) -> type:
        class BackEnd:
            name = own_name

            def __init__(self, _queues: tuple[int, int]) -> None:
                if own_name not in kernel.programs:
                    raise HostError(f"{own_name} is not installed")

            def probe(self) -> None:
                if not kernel.can_nft:
                    raise HostError("no queue expression")

            def is_installed(self) -> bool:
                return own_name in kernel.installed

            def remove(self) -> None:
                kernel.installed.remove(own_name)

        return BackEnd

    nft, iptables = back_end("nft"), back_end("iptables")
    monkeypatch.setattr(hook_backends, "NftHooks", nft)
    monkeypatch.setattr(hook_backends, "IptablesHooks", iptables)
    monkeypatch.setattr(hook_backends, "BACK_ENDS", {"nft": nft, "iptables": iptables})
    return kernel


@pytest.mark.parametrize(
    ("choice", "programs", "can_nft", "taken"),
    [
        ("auto", {"nft", "iptables"}, True, "nft"),
        ("auto", {"nft", "iptables"}, False, "iptables"),
        ("auto", {"iptables"}, True, "iptables"),
        ("auto", {"nft"}, True, "nft"),
        ("nft", {"nft", "iptables"}, True, "nft"),
        ("iptables", {"nft", "iptables"}, True, "iptables"),
    ],
)
def test_choice(kernel: Kernel, choice: str, programs: set[str], can_nft: bool, taken: str) -> None:
    """`auto` asks the kernel; a choice is a choice."""
    kernel.programs, kernel.can_nft = programs, can_nft
    assert open_hooks(choice, (1, 1)).name == taken


@pytest.mark.parametrize("choice", ["nft", "iptables"])
def test_a_choice_that_cannot_be_honoured(kernel: Kernel, choice: str) -> None:
    """No silent fallback."""
    kernel.programs = kernel.programs - {choice}
    with pytest.raises(HostError, match=f"^{choice} is not installed$"):
        open_hooks(choice, (1, 1))


def test_neither(kernel: Kernel) -> None:
    """Both reasons are said."""
    kernel.programs, kernel.can_nft = {"nft"}, False
    with pytest.raises(HostError, match="iptables is not installed; nor by nft: no queue expression"):
        open_hooks("auto", (1, 1))


@pytest.mark.parametrize("mine", ["nft", "iptables"])
def test_leftovers(kernel: Kernel, mine: str) -> None:
    """The other back end's go, one's own stay; where nothing is, nothing happens."""
    hooks = open_hooks(mine, (1, 1))
    kernel.installed = {"nft", "iptables"}
    for _ in range(2):
        remove_leftovers(hooks)
        assert kernel.installed == {mine}


def test_leftovers_of_what_is_not_installed(kernel: Kernel) -> None:
    """Nobody can have used it."""
    kernel.programs = {"nft"}
    remove_leftovers(open_hooks("nft", (1, 1)))
