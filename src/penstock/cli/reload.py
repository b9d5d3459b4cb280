"""`--reload`: run the server as a child, and start it anew when a Python file below this folder changes.

The child has a process group of its own, so that a Ctrl-C reaches it once, through us, and it stops in order. When it
ends by itself (a broken edit), we wait for the next change.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from types import FrameType

_SKIPPED = {"venv", "node_modules", "__pycache__"}
_PERIOD = 0.25  # seconds between looks
_HURRY = 2.0  # seconds for what is in flight when the code has changed; a page's open stream would never end


class _Told(Exception):
    """A signal: stop."""


def supervise(argv: Sequence[str], app: str) -> None:
    """Until SIGINT or SIGTERM, which the child gets too; its exit status is then ours. `app` is the module or file."""
    command = [sys.executable, "-m", "penstock", *[a for a in argv if a != "--reload"]]
    roots = [os.getcwd()]
    folder = os.path.dirname(os.path.abspath(app)) if app.endswith(".py") else roots[0]
    if os.path.commonpath([folder, roots[0]]) != roots[0]:
        roots.append(folder)
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, _tell)
    child: subprocess.Popen[bytes] | None = None
    try:
        while True:
            seen = stamps(roots)
            child = subprocess.Popen(command, process_group=0)
            _watch(child, roots, seen)
            print("a file changed: starting anew", file=sys.stderr, flush=True)
            _stop(child, _HURRY)
    except _Told:
        while True:
            try:
                raise SystemExit(130 if child is None else _stop(child))
            except _Told:
                continue


def _tell(number: int, frame: FrameType | None) -> None:
    raise _Told


def _watch(child: subprocess.Popen[bytes], roots: Sequence[str], seen: dict[str, int]) -> None:
    """Return when a file has changed."""
    told = False
    while stamps(roots) == seen:
        if child.poll() is not None and not told:
            told = True
            print("the server has ended; waiting for a file to change", file=sys.stderr, flush=True)
        time.sleep(_PERIOD)


def stamps(roots: Sequence[str]) -> dict[str, int]:
    """When each Python file was last written."""
    found: dict[str, int] = {}
    for root in roots:
        for folder, folders, files in os.walk(root):
            folders[:] = [name for name in folders if name not in _SKIPPED and not name.startswith(".")]
            for name in files:
                if name.endswith(".py"):
                    path = os.path.join(folder, name)
                    try:
                        found[path] = os.stat(path).st_mtime_ns
                    except OSError:
                        continue
    return found


def _stop(child: subprocess.Popen[bytes], within: float | None = None) -> int:
    """Stop it as Ctrl-C does, and once more after `within` seconds. Its exit status, as a shell gives it."""
    if child.poll() is None:
        child.send_signal(signal.SIGINT)
    try:
        status = child.wait(within)
    except subprocess.TimeoutExpired:
        child.send_signal(signal.SIGINT)
        status = child.wait()
    return 128 - status if status < 0 else status
