"""The two fast paths look the same from outside: names, signatures, documentation, errors."""

from __future__ import annotations

import ast
import inspect
import re
from collections.abc import Callable
from pathlib import Path as FilePath
from typing import Any

import pytest
from differential.packets import icmp_payload, ipv4
from support.backends import load_both, table_config

import natengine
from natengine import _fastpath_py
from natengine.flow.records import FlowSpec, Path
from natengine.vocab import Hook, Proto
from natengine.wire.ipv4 import ICMP_COUNTERPART, WITH_PORTS

PACKAGE = FilePath(natengine.__file__).parent
SPEC = FlowSpec(Proto.UDP, 0x0A01000B, 40000, 0xCB007101, 40000, 0xCB007102, 53, True, 3, 4, 7)


def public(thing: object) -> set[str]:
    return {name for name in dir(thing) if not name.startswith("_")}


METHODS = [*sorted(public(_fastpath_py.FastPath)), "__len__"]


def test_same_public_names() -> None:
    python, cython = load_both()
    assert python.__all__ == cython.__all__
    different = {name for name in python.__all__ if getattr(python, name) != getattr(cython, name)}
    assert different == {"BACKEND", "FastPath", "complete_checksum"}
    assert (python.BACKEND, cython.BACKEND) == ("python", "cython")
    assert public(python.FastPath) == public(cython.FastPath)


@pytest.mark.parametrize("method", METHODS)
def test_same_signature_and_documentation(method: str) -> None:
    python, cython = (getattr(backend.FastPath, method) for backend in load_both())
    if method != "__len__":                 # a slot of the type: nothing but (self)
        assert inspect.signature(python) == inspect.signature(cython)
        assert inspect.getdoc(python) == inspect.getdoc(cython)


def test_same_constructor() -> None:
    python, cython = (backend.FastPath for backend in load_both())
    for twin in (python, cython):
        assert list(inspect.signature(twin).parameters) == ["config", "memory", "now_ns"]
    assert inspect.getdoc(python) == inspect.getdoc(cython).strip()
    assert len(cython(config=table_config())) == 0


def test_neither_can_be_subclassed_into_something_else() -> None:
    python, cython = (backend.FastPath for backend in load_both())
    assert python.__final__
    with pytest.raises(TypeError):
        type("Mine", (cython,), {})


def test_stub_agrees() -> None:
    """Every method of the stub has the signature that is written in `_fastpath_py.py`."""
    def methods(path: str) -> dict[str, str]:
        (cls,) = (
            node for node in ast.parse((PACKAGE / path).read_text()).body
            if isinstance(node, ast.ClassDef) and node.name == "FastPath"
        )
        return {
            node.name: f"{ast.unparse(node.args)} -> {ast.unparse(node.returns) if node.returns else None}"
            for node in cls.body
            if isinstance(node, ast.FunctionDef) and (node.name in METHODS)
        }

    assert methods("_fastpath_py.py") == methods("_fastpath.pyi")
    assert sorted(METHODS) == sorted(methods("_fastpath.pyi"))


def test_numbers_of_the_pxd_are_those_of_the_enums() -> None:
    text = (PACKAGE / "_wire.pxd").read_text()
    paths = {name: int(value) for name, value in re.findall(r"\bPATH_(\w+) = (\d+)", text)}
    assert {path.name: path.value for path in Path} == paths
    hooks = {name: int(value) for name, value in re.findall(r"\bHOOK_(\w+) = (\d+)", text)}
    assert {name: Hook[name].value for name in hooks} == hooks
    protos = {name: int(value) for name, value in re.findall(r"\bIS_(\w+) = (\d+)", text)}
    assert {name: Proto[name].value for name in protos} == protos
    assert {proto.name for proto in (*WITH_PORTS, Proto.ICMP)} < set(protos)


def test_both_know_the_same_icmp_queries() -> None:
    for kind in range(256):
        packet = ipv4(Proto.ICMP, SPEC.inside_ip, SPEC.peer_ip, icmp_payload(kind, 7))
        paths = {backend.FastPath(CONFIG).translate(bytearray(packet), 4, 0) for backend in load_both()}
        assert paths == {Path.MISS if kind in ICMP_COUNTERPART else Path.SPECIAL}, kind


def outcome(call: Callable[[], Any]) -> Any:
    try:
        return call()
    except Exception as error:
        return type(error)


NO_INTEGERS = (1.0, "1", None, b"1", [1])
BEYOND = (-1, 2**63, 2**64, -2**63 - 1, 2**31, -2**31 - 1, 2**32, 256)

WRONG_CALLS = [
    *(("translate", packet, 0, 0) for packet in (b"", "", None, memoryview(b""), [])),
    *(("translate", bytearray(40), hook, 0) for hook in (*NO_INTEGERS, *BEYOND)),
    *(("translate", bytearray(40), 0, now_ns) for now_ns in (*NO_INTEGERS, *BEYOND)),
    ("translate", bytearray(40), 0), ("translate",), ("translate", bytearray(40), 0, 0, 0, 0),
    *(("translate", bytearray(40), 0, 0, out_ifindex) for out_ifindex in (*NO_INTEGERS, *BEYOND)),
    *(
        ("touch", *((wrong if at == place else 0) for at in range(4)))
        for place in range(4) for wrong in (*NO_INTEGERS, *BEYOND)
    ),
    *(("install", SPEC, now_ns) for now_ns in (*NO_INTEGERS, *BEYOND)),
    *(
        ("install", FlowSpec(*SPEC[:place], wrong, *SPEC[place + 1:]), 0)
        for place in range(11) for wrong in (*NO_INTEGERS, -1, 2, 256, 2**16, 2**32, 2**63, 2**64)
    ),
    ("install", tuple(SPEC), 0), ("install", SPEC[:5], 0), ("install", None, 0), ("install", (*SPEC, 1), 0),
    *(("remove", flow_id) for flow_id in (*NO_INTEGERS, *BEYOND)),
    *(("info", flow_id) for flow_id in (*NO_INTEGERS, *BEYOND)),
    *(("doubt", flow_id) for flow_id in (*NO_INTEGERS, *BEYOND)),
    *(("approve", flow_id, 7, 4) for flow_id in (*NO_INTEGERS, *BEYOND)),
    *(("approve", 0, allow, 4) for allow in (*NO_INTEGERS, *BEYOND)),
    *(("approve", 0, 7, uplink) for uplink in (*NO_INTEGERS, *BEYOND)),
    *(
        ("find_on", *((wrong if at == place else 0) for at in range(3)))
        for place in range(3) for wrong in (*NO_INTEGERS, *BEYOND)
    ),
    *(
        ("find", (*SPEC.leaving[:place], wrong, *SPEC.leaving[place + 1:]))
        for place in range(6) for wrong in (*NO_INTEGERS, *BEYOND)
    ),
    ("find", None), ("find", ()), ("find", tuple(SPEC.leaving)), ("find", list(SPEC.leaving)), ("find", {}),
    *(("clamp", {uplink: 1}) for uplink in (*NO_INTEGERS[:4], *BEYOND)),
    *(("clamp", {1: limit}) for limit in (*NO_INTEGERS, *BEYOND, 65536)),
    ("clamp", None), ("clamp", {}),
    *(("expire", now_ns, 1) for now_ns in (*NO_INTEGERS, *BEYOND)),
    *(("expire", 0, budget) for budget in (*NO_INTEGERS, *BEYOND)),
    ("expire", 0), ("snapshot", 1), ("invalidate", 1), ("oldest_unreplied", 1),
]


@pytest.mark.parametrize("call", WRONG_CALLS, ids=lambda call: f"{call[0]}{call[1:]}"[:60])
def test_same_errors_for_wrong_arguments(call: tuple[Any, ...]) -> None:
    method, *args = call
    twins = [backend.FastPath(table_config()) for backend in load_both()]
    for twin in twins:
        twin.install(SPEC._replace(inside_port=1, outside_port=1), 0)
    python, cython = twins
    expected, actual = (outcome(lambda twin=twin: getattr(twin, method)(*args)) for twin in twins)
    assert expected == actual
    assert repr(expected) == repr(actual) or method == "translate"      # there: an enum and its value
    assert python.snapshot() == cython.snapshot()


CONFIG = table_config()
WRONG_KEYS = (b"", bytes(15), bytes(17), "0123456789abcdef", None, bytearray(16))
WRONG_TIMEOUTS = ((), (1,) * 9, (1,) * 11, (1.5,) * 10, (-1,) * 10, None)
WRONG_TRANSITIONS = (b"", bytes(119), bytes([10] * 120), bytes([254] * 120), list(bytes(120)))
WRONG_CONFIGS = [
    *(CONFIG._replace(capacity=value) for value in (0, -1, 2**28 + 1, 2**64, *NO_INTEGERS)),
    *(CONFIG._replace(hash_key=value) for value in WRONG_KEYS),
    *(CONFIG._replace(timeouts_ns=(value,) * 256) for value in (-1, 2**62 + 1, 2**64, *NO_INTEGERS)),
    *(CONFIG._replace(timeouts_ns=value) for value in ((), (1,) * 255, (1,) * 257, None)),
    *(CONFIG._replace(tcp_unacknowledged_ns=value) for value in (-1, 2**62 + 1, 2**64, *NO_INTEGERS)),
    *(CONFIG._replace(dns_timeout_ns=value) for value in (-1, 2**62 + 1, 2**64, *NO_INTEGERS)),
    *(CONFIG._replace(tcp_timeouts_ns=value) for value in WRONG_TIMEOUTS),
    *(CONFIG._replace(transitions=value) for value in WRONG_TRANSITIONS),
    *(CONFIG._replace(segment_of_flags=value) for value in (b"", bytes(255), bytes([6] * 256), None)),
    None, (), tuple(CONFIG),
]


@pytest.mark.parametrize("config", WRONG_CONFIGS, ids=str)
def test_same_errors_for_a_wrong_config(config: Any) -> None:
    expected, actual = (outcome(lambda backend=backend: backend.FastPath(config)) for backend in load_both())
    assert isinstance(expected, type) and issubclass(expected, Exception)
    assert expected is actual


def test_largest_times_and_timeouts() -> None:
    config = table_config(tcp_timeouts_ns=(2**62,) * 10, timeouts_ns=(2**62,) * 256)
    infos = []
    for backend in load_both():
        table = backend.FastPath(config)
        table.install(SPEC, 2**63 - 1)
        table.touch(0, 4, 2**32 - 1, 2**63 - 1)
        infos.append((table.info(0), table.expire(2**63 - 1, 10)))
    assert infos[0] == infos[1]
    assert infos[0][0].deadline_ns == 2**63 - 1 + 2**62
