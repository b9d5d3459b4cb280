"""Bodies that take memory, imported by child processes."""

from __future__ import annotations

import os

import penstock as ps

ram = ps.Memory("ram", size_bytes=1 << 30, device="host")


@ps.service(on=ps.Process(1), needs={ram: lambda size, said: said})
def hog(size: int, said: int) -> int:
    return len(bytearray(b"x") * size)


@ps.service(on=ps.Process(1))
def pid(_: int = 0) -> int:
    return os.getpid()
