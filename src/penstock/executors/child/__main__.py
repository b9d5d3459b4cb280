"""Started by path: `python .../child WORK CONTROL INBOX OUTBOX`, four file descriptors. Takes the child's package by its
path too, so that neither penstock nor anything else need be installed in this interpreter.
"""

from __future__ import annotations

import ctypes
import faulthandler
import importlib.util
import os
import signal
import socket
import sys

PACKAGE = "_penstock_child"


def main() -> None:
    """Set this process up before anything of the user's is imported, then serve."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the parent's to handle
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(1, signal.SIGKILL)  # PR_SET_PDEATHSIG
        if os.getppid() != int(os.environ["PENSTOCK_PARENT"]):
            os._exit(0)
    cores = os.environ.get("PENSTOCK_CORES")
    if cores and hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, {int(core) for core in cores.split(",")})
    for stream in (sys.stdout, sys.stderr):
        stream.reconfigure(encoding="utf-8", errors="backslashreplace", line_buffering=True)  # type: ignore[union-attr]
    faulthandler.enable()
    here = os.path.dirname(os.path.abspath(__file__))
    if sys.path and os.path.abspath(sys.path[0]) == here:
        del sys.path[0]
    spec = importlib.util.spec_from_file_location(PACKAGE, os.path.join(here, "__init__.py"), submodule_search_locations=[here])
    assert spec is not None and spec.loader is not None
    package = importlib.util.module_from_spec(spec)
    sys.modules[PACKAGE] = package
    spec.loader.exec_module(package)
    arena = importlib.import_module(PACKAGE + ".arena")
    work, control, inbox, outbox = (int(word) for word in sys.argv[1:5])
    link = importlib.import_module(PACKAGE + ".link").Link(
        socket.socket(fileno=work), socket.socket(fileno=control), arena.Inbox(inbox), arena.Outbox(outbox)
    )
    for fd in (inbox, outbox):
        os.close(fd)
    importlib.import_module(PACKAGE + ".serve").start(link)


if __name__ == "__main__":
    main()
