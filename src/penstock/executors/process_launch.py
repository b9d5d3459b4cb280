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
from penstock.executors.base import Body, Process, fewest
from penstock.executors.child import arena

_WORKER = str(Path(__file__).parent / "child")
_THREADS = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS", "NUMEXPR_NUM_THREADS", "RAYON_NUM_THREADS")
_OTHERS = ("PYTHONPATH", "PYTHONHOME", "VIRTUAL_ENV", "__PYVENV_LAUNCHER__")  # of our interpreter, not of another one


@dataclass(frozen=True, slots=True)
class Launched:
    """A process that has been started, and our ends of what connects us."""

    process: subprocess.Popen[bytes]
    work: socket.socket
    control: socket.socket
    outbox: arena.Outbox
    inbox: arena.Inbox
    stdout: int
    stderr: int


class Launcher:
    """Starts the replicas of one body. Raises ConfigError for a body that no child could load."""

    def __init__(
        self, body: Body, options: Process, threads: int, buffer: int, beat: float, steps: dict[str, Any] | None = None
    ) -> None:
        qualname = getattr(body.target, "__qualname__", "")
        if not qualname or "<" in qualname:
            raise ConfigError(f"{body.name}: a child process imports its body by name; define it at module level")
        self.options = options
        self.threads = threads
        flags: list[str] = subprocess._args_from_interpreter_flags()  # type: ignore[attr-defined]
        self.command = [sys.executable, *flags] if options.python is None else [interpreter(options.python)]
        try:
            init = pickle.dumps((body.args, dict(body.kwargs)), protocol=5)
        except Exception as error:
            raise ConfigError(f"{body.name}: its constructor's arguments cannot be sent: {error}") from error
        foreign = options.python is not None
        preparation = {k: v for k, v in spawn.get_preparation_data(body.name).items() if k != "authkey"}
        module = body.target.__module__
        if foreign:
            keep = ("init_main_from_name", "init_main_from_path") if module == "__main__" else ()
            preparation = {k: v for k, v in preparation.items() if k in keep}
        self.declaration: dict[str, Any] = {
            "name": body.name,
            "module": module,
            "qualname": qualname,
            "init": init,
            "is_class": body.is_class,
            "is_async": body.is_async,
            "batched": body.batched,
            "streams": body.streams,
            "steps": steps,
            "concurrent": options.concurrency > 1,
            "buffer": buffer,
            "beat": beat,
            "warmup": None if options.warmup is None else pickle.dumps(options.warmup, protocol=5),
            "foreign": foreign,
            "paths": [root(module)] if foreign else [],
            "preparation": preparation,
        }

    def environment(self, index: int) -> dict[str, str]:
        """What the child of this replica finds in its environment."""
        options = self.options
        found = dict(os.environ)
        if options.python is not None:
            for name in _OTHERS:
                found.pop(name, None)
        for name in _THREADS:
            found[name] = str(self.threads)
        if options.device:
            device = options.device[index % len(options.device)]
            found["PENSTOCK_DEVICE"] = device
            kind, _, number = device.partition(":")
            if kind == "cuda":
                found["CUDA_VISIBLE_DEVICES"] = visible(int(number or 0))
                found["PENSTOCK_DEVICE"] = "cuda:0"  # the only one that this child sees
        if options.cores:
            count = fewest(options.replicas)
            found["PENSTOCK_CORES"] = ",".join(map(str, share(tuple(options.cores), index % count, count)))
        found.update(options.env or {})
        found["PENSTOCK_PARENT"] = str(os.getpid())
        return found

    def launch(self, index: int) -> Launched:
        """Start the process of this replica."""
        ours, theirs = socket.socketpair()
        control, their_control = socket.socketpair()
        down, up = arena.create(), arena.create()
        out, their_out = os.pipe()
        err, their_err = os.pipe()
        fds = (theirs.fileno(), their_control.fileno(), down, up)
        try:
            process = subprocess.Popen(
                [*self.command, _WORKER, *map(str, fds)],
                pass_fds=fds,
                stdin=subprocess.DEVNULL,
                stdout=their_out,
                stderr=their_err,
                env=self.environment(index),
                process_group=0,
            )
            return Launched(process, ours, control, arena.Outbox(down), arena.Inbox(up), out, err)
        except BaseException:
            ours.close()
            control.close()
            os.close(out)
            os.close(err)
            raise
        finally:
            theirs.close()
            their_control.close()
            for fd in (down, up, their_out, their_err):
                os.close(fd)


def interpreter(python: str | os.PathLike[str]) -> str:
    """The executable that `python=` means: an interpreter, or a virtual environment's."""
    path = Path(python).expanduser().absolute()
    if path.is_dir():
        found = next((p for p in (path / "bin" / "python", path / "Scripts" / "python.exe") if p.exists()), None)
        if found is None:
            raise ConfigError(f"Process(python={str(python)!r}): this directory is no virtual environment")
        return str(found)
    if not path.exists():
        raise ConfigError(f"Process(python={str(python)!r}): no such interpreter")
    return str(path)


def root(module: str) -> str:
    """The directory from which this module was imported: what a child needs on its path, and nothing else of ours."""
    top = sys.modules[module.partition(".")[0]]
    file = getattr(top, "__file__", None)
    if file is None:
        places = list(getattr(top, "__path__", [])) or [os.getcwd()]
        return str(Path(places[0]).absolute().parent)
    path = Path(file).absolute()
    return str(path.parent.parent if path.name == "__init__.py" else path.parent)


def visible(number: int) -> str:
    """The value of CUDA_VISIBLE_DEVICES that leaves the device which this process knows by this number."""
    ours = [word.strip() for word in os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",") if word.strip()]
    if not ours:
        return str(number)
    if number >= len(ours):
        raise ConfigError(f"Process(device='cuda:{number}'): only {len(ours)} devices are visible to this process")
    return ours[number]


def share(cores: tuple[int, ...], index: int, replicas: int) -> tuple[int, ...]:
    """The cores of one replica: an equal share, or one of them if there are fewer than replicas."""
    return cores[index::replicas] if len(cores) >= replicas else (cores[index % len(cores)],)
