"""The servers on inet2 and inet3: HTTP on port 80, echo on port 7 (TCP and UDP).

    GET /whoami             the client as the server sees it: "ADDRESS PORT\\n"
    GET /bytes/N[?seed=S]   N bytes that depend on N and S only; X-Sha256 is the digest of all of them
    POST /sink              reads the body; answers "SHA256 LENGTH\\n"
    UDP port 7              a datagram that begins with "whoami" comes back behind "ADDRESS PORT ",
                            any other exactly as it was
    TCP port 7              every byte comes back

Runs as a script with nothing but the standard library, so that it starts at once.
Limit: a body sent to /sink needs a Content-Length; chunked transfer is answered with 411.
"""

from __future__ import annotations

import functools
import hashlib
import random
import re
import socket
import socketserver
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import parse_qs, urlsplit

HTTP_PORT = 80
ECHO_PORT = 7
MAX_BODY_BYTES = 1 << 30
# A prime: a shift by any segment or buffer size does not map the repeated block onto itself.
BLOCK_BYTES = 65_521
READ_BYTES = 1 << 16
MAX_DATAGRAM_BYTES = 65_535


@functools.lru_cache(maxsize=8)
def block(seed: int) -> bytes:
    """The block that a body with this seed repeats."""
    return random.Random(seed).randbytes(BLOCK_BYTES)


def body(length: int, seed: int) -> Iterator[memoryview]:
    """The body of /bytes/`length`, in pieces of at most BLOCK_BYTES."""
    view = memoryview(block(seed))
    for offset in range(0, length, BLOCK_BYTES):
        yield view[: min(BLOCK_BYTES, length - offset)]


@functools.lru_cache(maxsize=64)
def body_sha256(length: int, seed: int) -> str:
    """The digest that /bytes/`length` announces."""
    digest = hashlib.sha256()
    for piece in body(length, seed):
        digest.update(piece)
    return digest.hexdigest()


class HttpHandler(BaseHTTPRequestHandler):
    """One HTTP connection."""

    protocol_version = "HTTP/1.1"
    wbufsize = -1                     # head and body of a small answer leave in one segment
    disable_nagle_algorithm = True

    def do_GET(self) -> None:
        url = urlsplit(self.path)
        if url.path == "/whoami":
            self._answer(200, f"{self.client_address[0]} {self.client_address[1]}\n")
        elif match := re.fullmatch(r"/bytes/(\d{1,12})", url.path):
            self._answer_bytes(int(match[1]), parse_qs(url.query).get("seed", ["0"])[-1])
        else:
            self._answer(404, "there are /whoami, /bytes/N and /sink\n")

    def do_POST(self) -> None:
        length = self.headers.get("Content-Length", "")
        if self.path != "/sink" or not length.isdecimal():
            self.close_connection = True   # the body, unread, would be taken for the next request
            if self.path != "/sink":
                self._answer(404, "only /sink takes a body\n")
            else:
                self._answer(411, "a Content-Length, please\n")
            return
        digest, left = hashlib.sha256(), int(length)
        while left and (piece := self.rfile.read(min(left, READ_BYTES))):
            digest.update(piece)
            left -= len(piece)
        self._answer(200, f"{digest.hexdigest()} {int(length) - left}\n")

    def log_request(self, code: int | str = "-", size: int | str = "-") -> None:
        """Log errors only: a load test would fill /run."""

    def _answer(self, status: int, text: str) -> None:
        content = text.encode()
        self.send_response(status)
        self.send_header("Content-Type", "text/plain")
        self.send_header("Content-Length", str(len(content)))
        if self.close_connection:
            self.send_header("Connection", "close")
        self.end_headers()
        self.wfile.write(content)

    def _answer_bytes(self, length: int, seed: str) -> None:
        if length > MAX_BODY_BYTES or not re.fullmatch(r"\d{1,18}", seed):
            self._answer(400, f"at most {MAX_BODY_BYTES} bytes, and a seed of at most 18 digits\n")
            return
        self.send_response(200)
        self.send_header("Content-Type", "application/octet-stream")
        self.send_header("Content-Length", str(length))
        self.send_header("X-Sha256", body_sha256(length, int(seed)))
        self.end_headers()
        for piece in body(length, int(seed)):
            self.wfile.write(piece)


class HttpServer(ThreadingHTTPServer):
    """A thread a connection."""

    request_queue_size = 1024

    def server_bind(self) -> None:
        # The inherited one asks the DNS for the host's name; there is none in the lab.
        socketserver.TCPServer.server_bind(self)
        self.server_name, self.server_port = "lab", self.server_address[1]

    def handle_error(self, request: object, client_address: object) -> None:
        """A client that went away is no error here."""
        if not isinstance(sys.exc_info()[1], ConnectionError):
            super().handle_error(request, client_address)  # type: ignore[arg-type]


class EchoHandler(socketserver.BaseRequestHandler):
    """One TCP echo connection; ends when the client has sent its FIN or goes away."""

    def handle(self) -> None:
        try:
            while data := self.request.recv(READ_BYTES):
                self.request.sendall(data)
        except ConnectionError:
            pass


class EchoServer(socketserver.ThreadingTCPServer):
    """A thread a connection."""

    allow_reuse_address = True
    daemon_threads = True
    request_queue_size = 1024


def serve_udp_echo(server: socket.socket) -> None:
    """Answer datagrams for ever."""
    while True:
        data, (address, port) = server.recvfrom(MAX_DATAGRAM_BYTES)
        if data.startswith(b"whoami"):
            data = f"{address} {port} ".encode() + data
        try:
            server.sendto(data, (address, port))
        except OSError as error:   # unreachable, or grown past 64 KB: this datagram's fault only
            print(f"udp echo to {address} port {port}: {error}", file=sys.stderr, flush=True)


def main() -> None:
    """Bind every port, then serve until a signal."""
    udp = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    udp.bind(("", ECHO_PORT))
    echo = EchoServer(("", ECHO_PORT), EchoHandler)
    http = HttpServer(("", HTTP_PORT), HttpHandler)
    threading.Thread(target=serve_udp_echo, args=[udp], daemon=True).start()
    threading.Thread(target=echo.serve_forever, daemon=True).start()
    http.serve_forever()


if __name__ == "__main__":
    main()
