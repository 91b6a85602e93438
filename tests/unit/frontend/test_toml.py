"""Settings files: every key, and every mistake with its place and what to write instead."""

from __future__ import annotations

from dataclasses import fields

import pytest

from natengine.errors import ConfigError
from natengine.frontend.toml import read_settings
from natengine.settings import SECOND_NS, FilteringBehaviour, MappingBehaviour, Settings, Timeouts


def test_nothing_said() -> None:
    assert read_settings("", "f") == Settings()


def test_some_things_said() -> None:
    text = """
        mapping = "address-and-port-dependent"      # the kernel's way
        filtering = "address-dependent"
        port_overloading = false
        port_hold_down = 0.5
        max_ports_per_host = 100
        hairpin_mark = 0x80000000
        clamp_mss_to_pmtu = ["ppp+", "bond0.2"]
        [timeouts]
        udp = 120
    """
    assert read_settings(text, "f") == Settings(
        mapping=MappingBehaviour.ADDRESS_AND_PORT_DEPENDENT, filtering=FilteringBehaviour.ADDRESS_DEPENDENT,
        port_overloading=False, port_hold_down_ns=SECOND_NS // 2, max_ports_per_host=100,
        hairpin_mark=1 << 31,
        clamp_mss_to_pmtu=("ppp+", "bond0.2"),
        timeouts=Timeouts(udp_ns=120 * SECOND_NS),
    )


def test_every_time_is_a_key_in_seconds() -> None:
    for cls, head in ((Settings, ""), (Timeouts, "[timeouts]\n")):
        for field in fields(cls):
            if field.name.endswith("_ns"):
                settings = read_settings(f"{head}{field.name.removesuffix('_ns')} = 7", "f")
                assert getattr(settings.timeouts if head else settings, field.name) == 7 * SECOND_NS


@pytest.mark.parametrize(("text", "message"), [
    ("mapping = none", "f: Invalid value (at line 1, column 11)"),
    ("maping = 1", "f: unknown key maping; did you mean mapping?"),
    ("port_hold_down_ns = 1", "f: unknown key port_hold_down_ns; did you mean port_hold_down?"),
    ("[timeouts]\nsctp_udp_icmp = 1", "f: unknown key timeouts.sctp_udp_icmp; there are tcp_established, "),
    ("timeouts = 5", "f: timeouts is a table: [timeouts], and its keys below"),
    ("filtering = 'none'", "f: filtering is one of endpoint-independent, address-dependent, address-and-port-depend"),
    ("tcp_liberal = 1", "f: tcp_liberal is true or false, not 1"),
    ("max_ports_per_host = 1.5", "f: max_ports_per_host is a whole number from 0 to 268435456, not 1.5"),
    ("max_ports_per_host = true", "f: max_ports_per_host is a whole number from 0 to 268435456, not True"),
    ("hairpin_mark = 0x100000000", "f: hairpin_mark is a whole number from 0 to 4294967295, not 4294967296"),
    ("clamp_mss_to_pmtu = true", "f: clamp_mss_to_pmtu is a list of names, such as [\"bond0.2\", \"ppp+\"], not True"),
    ("clamp_mss_to_pmtu = ['a', 1]", "f: clamp_mss_to_pmtu is a list of names, such as [\"bond0.2\", \"ppp+\"], not ["),
    ("syn_hold = -1", "f: syn_hold is seconds, 0 to 315360000, not -1"),
    ("[timeouts]\nudp = '5m'", "f: timeouts.udp is seconds, 0 to 315360000, not '5m'"),
    ("[timeouts]\nudp = inf", "f: timeouts.udp is seconds, 0 to 315360000, not inf"),
    ("[timeouts]\nudp = nan", "f: timeouts.udp is seconds, 0 to 315360000, not nan"),
])
def test_mistakes(text: str, message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        read_settings(text, "f")
    assert str(caught.value).startswith(message)
