"""Which back end puts the hooks into the kernel: nft where the kernel has all that it needs, or iptables."""

from __future__ import annotations

from natengine.adapters.hook_plan import Hooks
from natengine.adapters.hooks import IptablesHooks
from natengine.adapters.hooks_nft import NftHooks
from natengine.errors import HostError

BACK_ENDS: dict[str, type[NftHooks] | type[IptablesHooks]] = {"nft": NftHooks, "iptables": IptablesHooks}


def open_hooks(choice: str, queues: tuple[int, int]) -> Hooks:
    """Return a back end; nothing is installed yet.

    Args:
        choice: "nft" or "iptables", which is then used or fails; or "auto": nft (both chains change in one
            transaction, and no `iptables-restore` of somebody else's flushes them) if the kernel says
            that it can do it, else iptables.
        queues: First and last queue number.

    Raises:
        HostError: What was asked for is not installed, or neither is.
    """
    if choice != "auto":
        return BACK_ENDS[choice](queues)
    try:
        nft = NftHooks(queues)
        nft.probe()
        return nft
    except HostError as error:
        no_nft = error
    try:
        return IptablesHooks(queues)
    except HostError as error:
        raise HostError(f"{error}; nor by nft: {no_nft}") from None


def remove_leftovers(hooks: Hooks | None = None) -> None:
    """Take out what a killed engine, or a guard, has left.

    Args:
        hooks: The back end whose rules stay, and are in place; a packet would be queued twice.  None for none.

    Raises:
        HostError: It is there and cannot be removed.
    """
    for name, back_end in BACK_ENDS.items():
        if hooks is not None and name == hooks.name:
            continue
        try:
            other = back_end((0, 0))
        except HostError:           # not installed: then nobody has used it
            continue
        if other.is_installed():
            other.remove()
