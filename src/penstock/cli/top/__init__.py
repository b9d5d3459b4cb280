"""`penstock top [URL]`: a server's services, replicas, queues and latencies, live in the terminal."""

from __future__ import annotations

import argparse
import contextlib
import http.client
import os
import select
import shutil
import signal
import sys
import time
from collections.abc import Callable, Iterator

import msgspec

from penstock.cli import CommandFailed
from penstock.cli.server import SERVER, address, connection, token_argument
from penstock.cli.top.frame import frame
from penstock.http.status import Status

NAME = "top"
HELP = "watch a server: services, replicas, queues, batches, latencies"

_ENTER, _LEAVE = "\x1b[?1049h\x1b[?25l", "\x1b[?25h\x1b[?1049l"  # the alternate screen, without a cursor


def arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("url", nargs="?", default="http://127.0.0.1:8000", help="the server (default %(default)s)")
    parser.add_argument("--interval", type=float, default=1.0, help="seconds between frames (default 1)")
    parser.add_argument("--once", action="store_true", help="print one frame and end; also what it does without a terminal")
    token_argument(parser, "an operator's")


def run(options: argparse.Namespace) -> None:
    if not options.interval > 0:
        raise CommandFailed(f"--interval {options.interval:g}: seconds, greater than 0")
    parts = address(options.url if "://" in options.url else f"http://{options.url}", SERVER)
    server = f"{parts.scheme}://{parts.netloc}"

    def read() -> Status:
        return fetch(server, options.token)

    before = read()
    if options.once or not (sys.stdout.isatty() and sys.stdin.isatty()):
        time.sleep(options.interval)
        size = shutil.get_terminal_size((160, 10_000))
        height = size.lines if sys.stdout.isatty() else 10_000
        print("\n".join(frame(before, read(), server, max(size.columns, 80), height)))
        return
    with contextlib.suppress(KeyboardInterrupt), _screen():
        _watch(read, before, server, options.interval)


def fetch(server: str, token: str = "") -> Status:
    """The server's /status. Raises CommandFailed with what to do."""
    asked = connection(address(server, SERVER), timeout=5.0)
    try:
        asked.request("GET", "/status", headers={"authorization": f"Bearer {token}"} if token else {})
        answer = asked.getresponse()
        body = answer.read()
    except (OSError, http.client.HTTPException) as error:
        raise CommandFailed(f"no answer from {server}: {getattr(error, 'strerror', None) or error}") from error
    finally:
        asked.close()
    if answer.status in (401, 403):
        raise CommandFailed(f"{server} wants an operator's token: --token, or $PENSTOCK_TOKEN")
    try:
        if answer.status == 200:
            return msgspec.json.decode(body, type=Status)
    except msgspec.MsgspecError:
        pass
    raise CommandFailed(f"{server} is no penstock server (or another version): {answer.status} at /status")


def _watch(read: Callable[[], Status], before: Status, server: str, interval: float) -> None:
    colour = "NO_COLOR" not in os.environ
    while not _quits(interval):
        width, height = shutil.get_terminal_size()
        try:
            now = read()
        except CommandFailed as error:
            lines = [f"{error} (trying on; q ends)"[:width]]
        else:
            if now.at <= before.at:  # another process serves there now
                before = now
            lines = frame(before, now, server, width, height - 1, colour)
            before = now
        sys.stdout.write("\x1b[H" + "".join(f"{line}\x1b[K\r\n" for line in lines) + "\x1b[J")
        sys.stdout.flush()


def _quits(seconds: float) -> bool:
    """Wait for a key, at most this long."""
    ready, _, _ = select.select([sys.stdin], [], [], seconds)
    return bool(ready) and os.read(sys.stdin.fileno(), 64)[:1] in (b"q", b"Q", b"\x03", b"\x04", b"")


@contextlib.contextmanager
def _screen() -> Iterator[None]:
    """The terminal as a picture, and as it was afterwards, also when this is told to end."""
    import termios
    import tty

    keys = sys.stdin.fileno()
    typed = termios.tcgetattr(keys)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    try:
        tty.setcbreak(keys)
        sys.stdout.write(_ENTER)
        sys.stdout.flush()
        yield
    finally:
        termios.tcsetattr(keys, termios.TCSADRAIN, typed)
        sys.stdout.write(_LEAVE)
        sys.stdout.flush()
