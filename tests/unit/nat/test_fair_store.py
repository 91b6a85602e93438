"""`FairStore`: whoever takes too much gives way himself; a full space forgets what is oldest."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from natengine.nat.fair_store import FairStore


def test_a_source_beyond_its_share_loses_its_own_oldest() -> None:
    """Nobody else notices."""
    store = FairStore[str](room=10, share=2)
    assert store.add("other", source=2) == []
    assert [store.add(key, source=1) for key in "abcd"] == [[], [], ["a"], ["b"]]
    assert len(store) == 3


def test_a_full_space_loses_the_oldest_of_all() -> None:
    """Whoever's it is."""
    store = FairStore[str](room=3, share=2)
    assert [store.add(key, source=i) for i, key in enumerate("abcd")] == [[], [], [], ["a"]]


def test_weights() -> None:
    """A thing may grow; what is too heavy makes others go, and itself if that is not enough."""
    store = FairStore[str](room=100, share=40)
    assert store.add("a", 1, 15) == []
    assert store.add("b", 1, 15) == []
    assert store.add("b", 1, 15) == ["a"]
    assert store.used == 30
    assert store.add("b", 1, 11) == ["b"]
    assert (store.used, len(store)) == (0, 0)
    assert store.add("c", 1, 41) == ["c"]
    assert FairStore[str](0, 0).add("a", 1) == ["a"]


def test_remove() -> None:
    """Gives the room back; what is not in is no error."""
    store = FairStore[str](room=2, share=1)
    store.add("a", 1)
    store.remove("a")
    store.remove("a")
    assert store.add("b", 1) == []
    assert store.used == 1


@given(st.lists(st.tuples(st.integers(0, 9), st.integers(1, 30), st.booleans())))
def test_never_too_much(steps: list[tuple[int, int, bool]]) -> None:
    """Against a list that is searched: what is in, what goes, and in which order.  A key's source is its last digit."""
    store = FairStore[int](room=100, share=40)
    things: dict[int, int] = {}
    for key, weight, out in steps:
        if out:
            store.remove(key)
            things.pop(key, None)
            continue
        gone = store.add(key, key % 3, weight)
        things[key] = things.get(key, 0) + weight
        expected = []
        while sum(each for other, each in things.items() if other % 3 == key % 3) > 40:
            expected.append(next(other for other in things if other % 3 == key % 3))
            del things[expected[-1]]
        while sum(things.values()) > 100:
            expected.append(next(iter(things)))
            del things[expected[-1]]
        assert gone == expected
        assert (store.used, len(store)) == (sum(things.values()), len(things))
