"""How a child process is started: its interpreter, environment, devices, cores and file descriptors."""

from __future__ import annotations

import os
import pickle
import socket
import subprocess
import sys
from dataclasses import dataclass
from multiprocessing import spawn
from pathlib import Path
from typing import Any

from penstock.errors import ConfigError
from penstock.executors.base import Body, Process
from penstock.executors.child import arena

_WORKER = str(Path(__file__).parent / "child")
_THREADS = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS", "NUMEXPR_NUM_THREADS", "RAYON_NUM_THREADS")


@dataclass(frozen=True, slots=True)
class Launched:
    """A process that has been started, and our ends of what connects us."""

    process: subprocess.Popen[bytes]
    work: socket.socket
    control: socket.socket
    outbox: arena.Outbox
    inbox: arena.Inbox


class Launcher:
    """Starts the replicas of one body. Raises ConfigError for a body that no child could load."""

    def __init__(self, body: Body, options: Process, threads: int, buffer: int, beat: float) -> None:
        qualname = getattr(body.target, "__qualname__", "")
        if not qualname or "<" in qualname:
            raise ConfigError(f"{body.name}: a child process imports its body by name; define it at module level")
        self.options = options
        self.threads = threads
        try:
            init = pickle.dumps((body.args, dict(body.kwargs)), protocol=5)
        except Exception as error:
            raise ConfigError(f"{body.name}: its constructor's arguments cannot be sent: {error}") from error
        self.declaration: dict[str, Any] = {
            "name": body.name,
            "module": body.target.__module__,
            "qualname": qualname,
            "init": init,
            "is_class": body.is_class,
            "is_async": body.is_async,
            "batched": body.batched,
            "streams": body.streams,
            "buffer": buffer,
            "beat": beat,
            "warmup": None if options.warmup is None else pickle.dumps(options.warmup, protocol=5),
            "paths": [],
            "preparation": {k: v for k, v in spawn.get_preparation_data(body.name).items() if k != "authkey"},
        }

    def environment(self, index: int) -> dict[str, str]:
        """What the child of this replica finds in its environment."""
        found = dict(os.environ)
        for name in _THREADS:
            found[name] = str(self.threads)
        found["PENSTOCK_PARENT"] = str(os.getpid())
        return found

    def launch(self, index: int) -> Launched:
        """Start the process of this replica."""
        ours, theirs = socket.socketpair()
        control, their_control = socket.socketpair()
        down, up = arena.create(), arena.create()
        fds = (theirs.fileno(), their_control.fileno(), down, up)
        try:
            process = subprocess.Popen(
                [sys.executable, *subprocess._args_from_interpreter_flags(), _WORKER, *map(str, fds)],  # type: ignore[attr-defined]
                pass_fds=fds,
                stdin=subprocess.DEVNULL,
                env=self.environment(index),
                process_group=0,
            )
            return Launched(process, ours, control, arena.Outbox(down), arena.Inbox(up))
        except BaseException:
            ours.close()
            control.close()
            raise
        finally:
            theirs.close()
            their_control.close()
            os.close(down)
            os.close(up)
