"""Names of hosts and services, as the C library knows them; None where it does not."""

from __future__ import annotations

import socket


def addresses(name: str) -> list[str]:
    """Return a host's addresses, as dotted quads; none if there is no such host."""
    try:
        return list(dict.fromkeys(socket.gethostbyname_ex(name)[2]))
    except OSError:
        return []


def host_name(address: str) -> str | None:
    """Return the name of the host that has an address."""
    try:
        return socket.gethostbyaddr(address)[0]
    except OSError:
        return None


def port(name: str, proto: str) -> int | None:
    """Return the port of a service."""
    try:
        return socket.getservbyname(name, proto)
    except OSError:
        return None


def service_name(port: int, proto: str) -> str | None:
    """Return the service that has a port."""
    try:
        return socket.getservbyport(port, proto)
    except OSError:
        return None
