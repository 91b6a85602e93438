"""The Internet checksum, computed and updated."""

from __future__ import annotations

import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from natengine.wire.checksum import checksum, difference16, difference32, pseudo_header_sum, update

words = st.integers(0, 0xFFFF)
addresses = st.integers(0, 0xFFFF_FFFF)


@pytest.mark.parametrize(("data", "expected"), [
    # RFC 1071 section 3: the words sum up to 0xDDF2
    ("0001f203f4f5f6f7", 0xDDF2 ^ 0xFFFF),
    # an IPv4 header with its checksum field zero, and with it right
    ("45000073000040004011 0000 c0a80001c0a800c7", 0xB861),
    ("45000073000040004011 b861 c0a80001c0a800c7", 0),
    # the two zeros
    ("", 0xFFFF), ("00", 0xFFFF), ("0000", 0xFFFF), ("ffff", 0), ("ffffffff", 0),
    # an odd last byte is the high one of its word
    ("01", 0xFEFF), ("000102", 0xFDFE),
])
def test_known_checksums(data: str, expected: int) -> None:
    assert expected == checksum(bytes.fromhex(data))


@given(st.binary(max_size=64), words)
def test_sum_of_data_and_its_checksum_is_valid(data: bytes, initial: int) -> None:
    data += b"\0" * (len(data) % 2)
    whole = data + struct.pack("!H", checksum(data, initial))
    assert checksum(whole, initial) == 0


def test_memoryview_and_bytearray_are_data_too() -> None:
    data = b"\x12\x34\x56"
    assert checksum(data) == checksum(bytearray(data)) == checksum(memoryview(data))


def test_longest_datagram_does_not_overflow() -> None:
    assert checksum(b"\xff" * 65535) == checksum(b"\xff\x00")


@pytest.mark.parametrize(("value", "old", "new", "expected"), [
    # RFC 1624 section 4: the example that RFC 1141's form gets wrong (0xFFFF)
    (0xDD2F, 0x5555, 0x3285, 0x0000),
    # nothing changes
    (0x1234, 0x5555, 0x5555, 0x1234),
    (0x0000, 0x5555, 0x5555, 0x0000),
    # to zero and from it
    (0xFFFA, 0x0005, 0x0006, 0xFFF9),
    (0xFFFA, 0x0000, 0x0005, 0xFFF5),
])
def test_known_updates(value: int, old: int, new: int, expected: int) -> None:
    assert expected == update(value, difference16(old, new))


@given(addresses, addresses, words, words, st.binary(min_size=1, max_size=20))
def test_update_comes_to_what_computing_anew_comes_to(
    old_ip: int, new_ip: int, old_port: int, new_port: int, rest: bytes
) -> None:
    """For data that is not all zeros, before and after."""
    rest += b"\x01"
    old = checksum(struct.pack("!IH", old_ip, old_port) + rest)
    new = checksum(struct.pack("!IH", new_ip, new_port) + rest)
    assert new == update(old, difference32(old_ip, new_ip) + difference16(old_port, new_port))


@given(words, words, addresses, addresses, words, words)
def test_difference_between_two_checksums_is_kept(
    right: int, wrong: int, old_ip: int, new_ip: int, old_port: int, new_port: int
) -> None:
    """A damaged packet leaves as damaged as it came: the receiver can see it."""
    change = difference32(old_ip, new_ip) + difference16(old_port, new_port)
    assert (right - wrong) % 0xFFFF == (update(right, change) - update(wrong, change)) % 0xFFFF


@given(addresses, addresses, words, words)
def test_there_and_back(old_ip: int, new_ip: int, value: int, port: int) -> None:
    there = update(value, difference32(old_ip, new_ip) + difference16(port, 80))
    back = update(there, difference32(new_ip, old_ip) + difference16(80, port))
    assert value % 0xFFFF == back % 0xFFFF


@given(addresses, addresses, st.sampled_from((6, 17)), words)
def test_pseudo_header_is_what_the_rfcs_draw(src: int, dst: int, proto: int, length: int) -> None:
    """RFC 9293 3.1 and RFC 768: source, destination, zero, protocol, length."""
    drawn = struct.pack("!IIBBH", src, dst, 0, proto, length)
    assert checksum(drawn) == checksum(b"", pseudo_header_sum(src, dst, proto, length))
