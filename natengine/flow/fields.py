"""How wide the fields of the flow table are: what the compiled table could not hold, the Python one refuses."""

from __future__ import annotations

from collections.abc import Iterable
from operator import index

BIT, U8, U16, U32 = range(2), range(2**8), range(2**16), range(2**32)
INT, INT64 = range(-2**31, 2**31), range(-2**63, 2**63)
TIME_NS = range(2**63)


def fit(value: int, field: range) -> int:
    """Return `value` as the plain integer that a field of the compiled table would hold.

    Raises:
        TypeError: Not an integer.
        OverflowError: Not in `field`.
    """
    plain = index(value)
    if plain not in field:
        raise OverflowError(f"{plain} is not within {field.start}..{field.stop - 1}")
    return plain


def fit_all(values: Iterable[int], fields: tuple[range, ...]) -> tuple[int, ...]:
    """Return a record's fields as `fit` does; a TypeError if it has another number of them."""
    values = tuple(values)
    if len(values) != len(fields):
        raise TypeError(f"{len(values)} fields where {len(fields)} belong")
    return tuple(map(fit, values, fields))
