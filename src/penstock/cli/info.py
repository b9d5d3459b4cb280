"""`penstock info`: versions, the machine as penstock sees it, and what optional parts are there."""

from __future__ import annotations

import argparse
import importlib.util
import platform
from importlib.metadata import PackageNotFoundError, version

import psutil

from penstock.runtime.sizes import sizes, usable_cores

NAME = "info"
HELP = "show versions, this machine's sizes, and what optional parts are installed"


def arguments(parser: argparse.ArgumentParser) -> None:
    """No arguments of its own."""


def run(options: argparse.Namespace) -> None:
    table = sizes()
    memory = psutil.virtual_memory()
    print(f"penstock {version_of('penstock')}, Python {platform.python_version()}, {platform.platform()}")
    print(f"cores {usable_cores()}, memory {memory.total / 2**30:.1f} GiB ({memory.available / 2**30:.1f} free)")
    print(
        f"defaults: {table.threads} threads for a plain function, start within {table.start_timeout:g} s, "
        f"progress within {table.progress_timeout:g} s"
    )
    for name in ("uvloop", "httptools", "msgspec", "numpy", "onnxruntime", "torch", "transformers", "ray", "pydantic"):
        print(f"  {name:14}{version_of(name) if importlib.util.find_spec(name) else 'not installed'}")


def version_of(name: str) -> str:
    """The installed version of a distribution, or "?"."""
    try:
        return version(name)
    except PackageNotFoundError:
        return "?"
