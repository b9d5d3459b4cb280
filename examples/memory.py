"""Two services that unpack what they are sent share one budget of memory, so that together they never hold more than that.

A gzip file says in its last four bytes how large it will be. So a call knows what it needs before anything is unpacked: it
starts when that much is free, small ones pass a large one that waits, a bounded number of times, and what can never fit is
refused at once with the numbers. Send one: `curl --data-binary @some.gz -H 'content-type: application/octet-stream'`.
"""

import hashlib
import zlib

import penstock as ps
from penstock.errors import InvalidRequest

ram = ps.Memory("ram", size_bytes=64 << 20)


def size(file: bytes) -> int:
    """Bytes that this file says it has when it is unpacked (RFC 1952)."""
    return int.from_bytes(file[-4:], "little")


def unpack(file: bytes) -> bytes:
    """No more than was leased, whatever the file turns out to hold."""
    reader = zlib.decompressobj(wbits=31)
    try:
        data = reader.decompress(file, size(file) + 1)
    except zlib.error as error:
        raise InvalidRequest(f"not a gzip file: {error}") from None
    if not reader.eof or reader.unused_data:
        raise InvalidRequest("a gzip file of one part, please, that is as large as it says")
    return data


@ps.service(on=ps.Thread(4), needs={ram: size})
def lines(file: bytes) -> int:
    return unpack(file).count(b"\n")


@ps.service(on=ps.Thread(4), needs={ram: size})
def digest(file: bytes) -> str:
    return hashlib.sha256(unpack(file)).hexdigest()


app = ps.App(lines, digest)
