"""The flow table and its state file: taken over at the start, checked by `natengine state check`."""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path

from natengine.adapters.clock import now_ns
from natengine.adapters.statefile import Layout, StateFile, Unfit, read_records
from natengine.errors import CorruptTable
from natengine.fastpath import FastPath, configure, create, select
from natengine.flow.image import LAYOUT, RECORD_BYTES
from natengine.settings import Settings

FILE_NAME = "flows.state"           # in the run directory
NO_STATE = Path("none")

_LAYOUT = Layout(LAYOUT, RECORD_BYTES)


def open_table(choice: str, settings: Settings, path: Path | None) -> tuple[str, FastPath, StateFile | None]:
    """Return the name of a fast path, a table with the flows of the state file, and the file.

    Args:
        path: The state file; None for a table that nobody finds again.

    Raises:
        HostError: The file, or the fast path, cannot be used.
    """
    select(choice)                      # before there is a file
    config = configure(settings, os.urandom(16))        # the index is made anew, so its key is too
    if path is None:
        return *create(choice, config), None
    file = StateFile(path, _LAYOUT, settings.max_flows)
    try:
        return *create(choice, config, file.memory, now_ns()), file
    except CorruptTable as why:
        file.start_over(str(why))
        return *create(choice, config, file.memory, now_ns()), file


def check(path: Path) -> str:
    """Return what is to be said of a state file that an engine would take over.

    Raises:
        HostError: It cannot be read, or an engine uses it.
        CorruptTable: An engine would set it aside; the message says why.
    """
    try:
        memory, records = read_records(path, _LAYOUT)
        _, table = create("auto", configure(replace(Settings(), max_flows=records), bytes(16)), memory)
    except (Unfit, CorruptTable) as why:
        raise CorruptTable(f"{path}: {why}") from None
    return f"{path}: sound, {len(table)} flows, room for {records}"
