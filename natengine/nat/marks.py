"""The marks of flows: what CONNMARK sets, and `-m connmark` and `conntrack -L` see.

A mark is kept beside the table and not in it, for few rule sets have any: flows without one cost nothing.  So it
ends with the engine.  The next one gives a flow that it takes over the mark that the rules in force then give to a
first packet; it is the same one, unless a packet's own mark had been saved.
"""

from __future__ import annotations

from natengine.flow.records import FlowKey, FlowSpec


class FlowMarks:
    """Marks by the tuple of leaving packets, which every flow has to itself."""

    def __init__(self) -> None:
        self._marks: dict[FlowKey, int] = {}

    def __len__(self) -> int:
        return len(self._marks)

    def of(self, spec: FlowSpec) -> int:
        """Return a flow's mark; 0 where nothing has set one."""
        return self._marks.get(spec.leaving, 0) if self._marks else 0

    def set(self, spec: FlowSpec, mark: int) -> None:
        """Give a flow a mark."""
        if mark:
            self._marks[spec.leaving] = mark
        else:
            self.end(spec)

    def end(self, spec: FlowSpec) -> None:
        """Forget the mark of a flow that has ended."""
        if self._marks:
            self._marks.pop(spec.leaving, None)
