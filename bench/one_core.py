"""A `penstock serve` that has a core of its own; its children, and whoever measures it, share the others."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import psutil

HERE = Path(__file__).resolve().parent


@contextmanager
def one_core(target: str, **settings: str) -> Iterator[tuple[int, psutil.Process]]:
    """The port of this app, and its process. `settings` are environment variables."""
    env = {**os.environ, "PYTHONPATH": os.pathsep.join([str(HERE.parent / "src"), str(HERE)]), **settings}
    command = [sys.executable, "-m", "penstock", "serve", target, "--port", "0"]
    server = subprocess.Popen(command, cwd=HERE, env=env, stderr=subprocess.PIPE, text=True)
    try:
        assert server.stderr is not None
        port = next(int(m[1]) for line in server.stderr if (m := re.search(r"is up at http://127.0.0.1:(\d+)", line)))
        drain = subprocess.Popen(["cat"], stdin=server.stderr, stdout=subprocess.DEVNULL)  # its log
        process, cores = psutil.Process(server.pid), sorted(os.sched_getaffinity(0))
        for thread in process.threads():
            os.sched_setaffinity(thread.id, cores[:1])
        for pid in (0, drain.pid, *(child.pid for child in process.children())):
            os.sched_setaffinity(pid, cores[1:] or cores)
        yield port, process
    finally:
        server.terminate()
        server.wait(20)
