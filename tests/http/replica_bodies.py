"""A model in child processes that writes down whom it has served, and that can be kept from loading."""

from __future__ import annotations

import os
from pathlib import Path


class Model:
    """What it is told by the folder in $BOOK: `spoilt` is there if no model can be loaded any more."""

    def __init__(self) -> None:
        self.folder = Path(os.environ["BOOK"])
        if (self.folder / "spoilt").exists():
            raise ValueError("the weights are gone")
        self.book = os.open(self.folder / "book", os.O_WRONLY | os.O_APPEND | os.O_CREAT)

    def __call__(self, n: int, hold: bool = False) -> int:
        if hold:
            with open(self.folder / "gate", "rb", buffering=0) as gate:  # a FIFO: one byte for each that may go on
                gate.read(1)
        os.write(self.book, b"%d\n" % n)
        return os.getpid()
