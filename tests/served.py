"""A real `penstock serve` in a child process, on a free port of 127.0.0.1."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

ROOT = Path(__file__).parent.parent
SRC = ROOT / "src"
LONGEST = 30.0  # seconds for anything that a child is waited for


def environment() -> dict[str, str]:
    """Our own, with the sources that are under test first."""
    path = os.pathsep.join(filter(None, [str(SRC), os.environ.get("PYTHONPATH", "")]))
    return {**os.environ, "PYTHONPATH": path, "PYTHONUNBUFFERED": "1"}


class Child:
    """A running command. Its stderr is read by a thread, so that a full pipe never stops it."""

    def __init__(self, *arguments: str, cwd: Path | None = None) -> None:
        command = [sys.executable, "-m", "penstock", *arguments]
        self.process = subprocess.Popen(
            command, cwd=cwd, env=environment(), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        )
        self.lines: list[str] = []
        self._news = threading.Condition()
        self._ended = False
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def _read(self) -> None:
        assert self.process.stderr is not None
        for line in self.process.stderr:
            with self._news:
                self.lines.append(line.rstrip("\n"))
                self._news.notify_all()
        with self._news:
            self._ended = True
            self._news.notify_all()

    @property
    def said(self) -> str:
        """Everything on stderr so far."""
        return "\n".join(self.lines)

    def until(self, pattern: str, count: int = 1) -> re.Match[str]:
        """Wait for the `count`-th line of stderr that has `pattern`."""

        def found() -> list[re.Match[str]]:
            return [match for line in list(self.lines) if (match := re.search(pattern, line))]

        with self._news:
            self._news.wait_for(lambda: len(found()) >= count or self._ended, LONGEST)
        assert len(found()) >= count, f"{pattern!r} never came; stderr: {self.said}"
        return found()[count - 1]

    def end(self) -> int:
        """Wait for it to exit by itself; the exit status."""
        status = self.process.wait(LONGEST)
        self._reader.join(LONGEST)
        return status

    def close(self) -> None:
        if self.process.poll() is None:
            self.process.kill()
        self.process.wait(LONGEST)
        self._reader.join(LONGEST)
        for pipe in (self.process.stdout, self.process.stderr):
            if pipe is not None:
                pipe.close()


@contextmanager
def served(app: str, *arguments: str, cwd: Path | None = None) -> Iterator[tuple[Child, str]]:
    """A server of `module:app`, and its URL."""
    child = Child("serve", app, "--port", "0", *arguments, cwd=cwd)
    try:
        yield child, child.until(r"is up at (http://\S+)")[1]
    finally:
        child.close()
