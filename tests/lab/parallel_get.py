"""parallel_get.py ADDRESS COUNT BYTES: that many downloads at once, each with its hash verified.

Prints how many were right and on how many connections; run inside a node, needs the standard library only.
"""

import asyncio
import hashlib
import re
import sys


async def fetch(address: str, length: int, seed: int) -> bool:
    """Download one body; True if it is what the server announced."""
    reader, writer = await asyncio.open_connection(address, 80)
    try:
        writer.write(f"GET /bytes/{length}?seed={seed} HTTP/1.1\r\nHost: lab\r\n\r\n".encode())
        head = (await reader.readuntil(b"\r\n\r\n")).decode()
        body = await reader.readexactly(length)
    finally:
        writer.close()
    match = re.search(r"X-Sha256: ([0-9a-f]{64})", head)
    return match is not None and match[1] == hashlib.sha256(body).hexdigest()


async def main(address: str, count: int, length: int) -> None:
    """Start all of them, then wait for all of them."""
    results = await asyncio.gather(
        *(fetch(address, length, seed) for seed in range(count)), return_exceptions=True
    )
    print(results.count(True))
    failures = [repr(result) for result in results if result is not True]
    if failures:
        print(failures[:5], file=sys.stderr)


asyncio.run(asyncio.wait_for(main(sys.argv[1], int(sys.argv[2]), int(sys.argv[3])), 90))
