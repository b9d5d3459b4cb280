"""`--reload`: run the server as a child, and start it anew when a Python file below this folder changes."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Sequence

_SKIPPED = {".git", ".venv", "venv", "node_modules", "__pycache__"}


def supervise(argv: Sequence[str]) -> None:
    """Never returns by itself; Ctrl-C stops the child and then this."""
    command = [sys.executable, "-m", "penstock", *[a for a in argv if a != "--reload"]]
    while True:
        seen = stamps(os.getcwd())
        child = subprocess.Popen(command)
        try:
            while stamps(os.getcwd()) == seen:
                time.sleep(0.5)
        except KeyboardInterrupt:
            _stop(child)
            raise
        print("a file changed: starting anew", file=sys.stderr, flush=True)
        _stop(child)


def stamps(root: str) -> dict[str, int]:
    """When each Python file was last written."""
    found: dict[str, int] = {}
    for folder, folders, files in os.walk(root):
        folders[:] = [name for name in folders if name not in _SKIPPED]
        for name in files:
            if name.endswith(".py"):
                path = os.path.join(folder, name)
                try:
                    found[path] = os.stat(path).st_mtime_ns
                except OSError:
                    continue
    return found


def _stop(child: subprocess.Popen[bytes]) -> None:
    if child.poll() is None:
        child.send_signal(signal.SIGINT)
        try:
            child.wait(10)
        except subprocess.TimeoutExpired:
            child.kill()
            child.wait()
