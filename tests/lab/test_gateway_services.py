"""Services behind the head: a web server on worker1 that answers as 203.0.113.1, to everybody."""

from __future__ import annotations

import contextlib
import hashlib
import json
import socket
import threading
from collections.abc import Callable, Iterator
from http.server import ThreadingHTTPServer
from pathlib import Path

import pytest
from conftest import NewEngine
from gateway_tools import (
    ADDRESS,
    DEADLINE_S,
    INSIDE_HEAD,
    UPLINK,
    connect,
    curl,
    make_socket,
    udp_socket,
    wait_for,
)
from natlab import Lab, Node
from natlab.engine import Engine
from natlab.servers import HttpHandler

Start = Callable[..., Engine]

OUTSIDE = UPLINK["inet2"]
TO_WORKER1 = "-j DNAT --to-destination 10.1.0.11:80"
SERVICE = f"-d {OUTSIDE}/32 -p tcp -m tcp --dport 80 {TO_WORKER1}"
RULES = f"""\
*nat
-A PREROUTING {SERVICE}
-A OUTPUT {SERVICE}
-A POSTROUTING -o bond0.2 -j MASQUERADE
-A POSTROUTING -o bond0.3 -j MASQUERADE
COMMIT
"""

pytestmark = pytest.mark.lab


@contextlib.contextmanager
def web_server(node: Node, port: int = 80) -> Iterator[None]:
    """The internet's web server, on another node."""
    with node.enter():
        server = ThreadingHTTPServer(("", port), HttpHandler)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
    thread.start()
    try:
        yield
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


@pytest.fixture
def start(lab: Lab, new_engine: NewEngine, tmp_path: Path) -> Iterator[Start]:
    """A function that starts an engine with these rules; the web server is there."""

    def with_rules(text: str = RULES) -> Engine:
        path = tmp_path / "rules.v4"
        path.write_text(text)
        return new_engine("--rules", path)

    with web_server(lab.node("worker1")):
        yield with_rules


def client_of(node: Node, url: str = f"http://{OUTSIDE}/whoami") -> str:
    """The address that the server sees of a client on this node."""
    return curl(node, url).split()[0]


def test_from_outside_from_inside_and_from_the_head(lab: Lab, start: Start) -> None:
    """One address for everybody; clients from outside are seen as they are, others with the head's address."""
    start()
    seen = {name: client_of(lab.node(name)) for name in ("inet2", "worker2", "worker1", "head")}
    assert seen == {"inet2": ADDRESS["inet2"], "worker2": OUTSIDE, "worker1": OUTSIDE, "head": OUTSIDE}


@pytest.mark.parametrize("client", ["inet2", "worker2", "head"])
def test_much_data(lab: Lab, start: Start, tmp_path: Path, client: str) -> None:
    """Offloads, windows and checksums on every way."""
    start()
    path = tmp_path / "body"
    head = curl(lab.node(client), f"http://{OUTSIDE}/bytes/20000000?seed=5", "-o", str(path), "-D", "-")
    assert f"X-Sha256: {hashlib.sha256(path.read_bytes()).hexdigest()}" in head


def test_rules_come_and_go(lab: Lab, start: Start) -> None:
    """What a rule says holds for new connections; what no rule is about is as before."""
    engine = start("*nat\n-A POSTROUTING -o bond0.2 -j MASQUERADE\nCOMMIT\n")

    def has_service(name: str) -> bool:
        done = lab.node(name).run(["curl", "-sS", "-m", "1", f"http://{OUTSIDE}/whoami"], timeout=20, check=False)
        return done.returncode == 0

    assert not has_service("worker2") and not has_service("head")
    engine.type([f"iptables -t nat -A {chain} {SERVICE}" for chain in ("PREROUTING", "OUTPUT")])
    for name in ("inet2", "worker2", "head"):
        wait_for(f"the service at {name}", lambda name=name: has_service(name))
    engine.type([f"iptables -t nat -D {chain} {SERVICE}" for chain in ("PREROUTING", "OUTPUT")])
    assert not has_service("worker2") and not has_service("head")


def test_redirect(lab: Lab, start: Start, tmp_path: Path) -> None:
    """A port of the head's own, by another number; for who comes from outside, and from inside by name of a server."""
    start(
        "*nat\n-A PREROUTING -i bond0.2 -p tcp -m tcp --dport 8080 -j REDIRECT --to-ports 3128\n"
        "-A PREROUTING -i bond0.def -p tcp -m tcp --dport 80 -j REDIRECT --to-ports 3128\n"
        "-A POSTROUTING -o bond0.2 -j MASQUERADE\nCOMMIT\n"
    )
    with web_server(lab.node("head"), 3128):
        assert client_of(lab.node("inet2"), f"http://{OUTSIDE}:8080/whoami") == ADDRESS["inet2"]
        assert client_of(lab.node("worker2"), f"http://{ADDRESS['inet2']}/whoami") == ADDRESS["worker2"]
        body = tmp_path / "body"
        body.write_bytes(bytes(range(256)) * 40_000)
        said = curl(lab.node("inet2"), f"http://{OUTSIDE}:8080/sink", "--data-binary", f"@{body}", "-H", "Expect:")
        assert said.split() == [hashlib.sha256(body.read_bytes()).hexdigest(), str(body.stat().st_size)]


def test_the_heads_own_packets_to_a_service_of_its_own(lab: Lab, start: Start, tmp_path: Path) -> None:
    """REDIRECT in nat OUTPUT: to the loopback, whoever was asked; who answers seems to be who was asked."""
    head, inet2 = lab.node("head"), ADDRESS["inet2"]
    start(
        f"*nat\n-A OUTPUT -d {inet2} -p tcp -m tcp --dport 8080 -j REDIRECT --to-ports 3128\n"
        "-A OUTPUT -d 127.0.0.1 -p tcp -m tcp --dport 8081 -j REDIRECT --to-ports 3128\n"
        f"-A OUTPUT -d {OUTSIDE} -p tcp -m tcp --dport 8082 -j DNAT --to-destination 127.0.0.1:3128\n"
        "-A OUTPUT -p udp -m udp --dport 5300:5301 -j REDIRECT --to-ports 5300-5301\n"
        "-A POSTROUTING -o bond0.2 -j MASQUERADE\nCOMMIT\n"
    )
    with web_server(head, 3128), make_socket(head, socket.SOCK_DGRAM, 0) as service, udp_socket(head) as client:
        service.bind(("127.0.0.1", 5300))
        for url in (f"{inet2}:8080", "127.0.0.1:8081", f"{OUTSIDE}:8082", "127.0.0.1:3128"):
            assert client_of(head, f"http://{url}/whoami") == ("127.0.0.1" if "127" in url else OUTSIDE)
        body = tmp_path / "body"
        body.write_bytes(bytes(range(256)) * 40_000)
        said = curl(head, f"http://{inet2}:8080/sink", "--data-binary", f"@{body}", "-H", "Expect:")
        assert said.split() == [hashlib.sha256(body.read_bytes()).hexdigest(), str(body.stat().st_size)]
        client.sendto(b"question", (inet2, 5300))
        data, asker = service.recvfrom(100)
        service.sendto(bytes(5000), asker)
        assert (data, asker[0], client.recvfrom(6000)) == (b"question", OUTSIDE, (bytes(5000), (inet2, 5300)))
        client.connect((inet2, 5301))
        client.send(b"nobody has this one")
        with pytest.raises(ConnectionRefusedError):
            client.recv(100)
        assert client_of(head, f"http://{inet2}/whoami") == OUTSIDE          # other ports go where they are sent


def test_to_another_server(lab: Lab, start: Start) -> None:
    """What workers send to one server outside goes to another one, which seems to be the first."""
    start(
        "*nat\n-A PREROUTING -i bond0.def -p udp -m udp --dport 53 -j DNAT --to-destination 203.0.113.2:7\n"
        "-A POSTROUTING -o bond0.2 -j MASQUERADE\n-A POSTROUTING -o bond0.3 -j MASQUERADE\nCOMMIT\n"
    )
    with udp_socket(lab.node("worker1")) as link:
        link.sendto(b"whoami", (ADDRESS["inet3"], 53))
        data, source = link.recvfrom(100)
        assert (data.split()[0], source) == (OUTSIDE.encode(), (ADDRESS["inet3"], 53))


def test_snat(lab: Lab, start: Start) -> None:
    """An address that the uplink has beside its first one."""
    head = lab.node("head")
    head.run(["ip", "address", "add", "203.0.113.50/24", "dev", "bond0.2"], timeout=10)
    try:
        start("*nat\n-A POSTROUTING -o bond0.2 -j SNAT --to-source 203.0.113.50\nCOMMIT\n")
        assert client_of(lab.node("worker2"), f"http://{ADDRESS['inet2']}/whoami") == "203.0.113.50"
    finally:
        head.run(["ip", "address", "del", "203.0.113.50/24", "dev", "bond0.2"], timeout=10)


def test_netmap_is_one_to_one(lab: Lab, start: Start, tmp_path: Path) -> None:
    """Each worker has an outside address of its own: by it others reach the worker, and by it others see it."""
    start(
        "*nat\n-A PREROUTING -i bond0.2 -d 203.0.113.64/28 -j NETMAP --to 10.1.0.0/28\n"
        "-A POSTROUTING -s 10.1.0.0/28 -o bond0.2 -j NETMAP --to 203.0.113.64/28\nCOMMIT\n"
    )
    inet2 = lab.node("inet2")
    outside = {name: f"203.0.113.{64 + int(ADDRESS[name].split('.')[3])}" for name in ("worker1", "worker2")}
    inet2.run(["ip", "route", "add", "203.0.113.64/28", "via", OUTSIDE], timeout=10)
    try:
        for name, address in outside.items():
            assert client_of(lab.node(name), f"http://{ADDRESS['inet2']}/whoami") == address
        assert client_of(inet2, f"http://{outside['worker1']}/whoami") == ADDRESS["inet2"]
        path = tmp_path / "body"
        head = curl(inet2, f"http://{outside['worker1']}/bytes/5000000?seed=7", "-o", str(path), "-D", "-")
        assert f"X-Sha256: {hashlib.sha256(path.read_bytes()).hexdigest()}" in head
        inet2.run(["ping", "-c", "1", "-W", "5", outside["worker2"]], timeout=20)
        with udp_socket(lab.node("worker2"), source_port=999) as server, udp_socket(inet2) as link:
            link.sendto(b"to worker2", (outside["worker2"], 999))
            data, source = server.recvfrom(100)
            assert (data, source) == (b"to worker2", (ADDRESS["inet2"], link.getsockname()[1]))
            server.sendto(b"back", source)
            assert link.recvfrom(100) == (b"back", (outside["worker2"], 999))
    finally:
        inet2.run(["ip", "route", "del", "203.0.113.64/28", "via", OUTSIDE], timeout=10)


def test_errors_reach_the_client(lab: Lab, start: Start) -> None:
    """No such port behind the rule: refused at once, from outside, from inside and from the head."""
    start(RULES.replace("-p tcp -m tcp --dport 80", "-p udp -m udp --dport 999").replace(":80", ":999"))
    for name in ("inet2", "worker2", "head"):
        with udp_socket(lab.node(name)) as link:
            link.connect((OUTSIDE, 999))
            link.settimeout(0.5)

            def is_refused(link: socket.socket = link) -> bool:
                link.send(b"anybody there")
                try:
                    link.recv(100)
                except TimeoutError:            # a kernel says so only once a second
                    return False
                except ConnectionRefusedError:
                    return True
                raise AssertionError("somebody is there")

            wait_for(f"the refusal at {name}", is_refused)


def test_other_traffic_of_the_head(lab: Lab, start: Start) -> None:
    """While its own packets are taken: what no rule is about is as ever.  A service that is new answers at once."""
    engine = start()
    with web_server(lab.node("head"), 8081):
        assert client_of(lab.node("head"), f"http://{OUTSIDE}:8081/whoami") == OUTSIDE
        assert client_of(lab.node("worker1"), f"http://{INSIDE_HEAD}:8081/whoami") == ADDRESS["worker1"]
        assert client_of(lab.node("inet2"), f"http://{OUTSIDE}:8081/whoami") == ADDRESS["inet2"]
        assert json.loads(engine.run("status", "--json").stdout)["packets_by_reason"]["SYN_HELD"] == 0
    with connect(lab.node("head"), ADDRESS["inet3"], 7) as link:
        link.settimeout(DEADLINE_S)
        link.sendall(b"x")
        assert link.recv(1) == b"x"
