"""What the scheduler orders. The driver carries a command out at once, and never re-enters the scheduler meanwhile."""

from __future__ import annotations

from typing import NamedTuple

from penstock.core.request import Request, Work
from penstock.core.station import Station
from penstock.errors import PenstockError


class Start(NamedTuple):
    """Run this work now; its lease is taken."""

    work: Work


class Stage(NamedTuple):
    """Hand this full batch to its busy replica, revocable until taken; its lease is taken when it is."""

    work: Work


class Revoke(NamedTuple):
    """Take a staged work back; answer with `revoked` or, if it was too late, let `taken` come."""

    work: Work


class End(NamedTuple):
    """Answer this request's caller with the error. It was not (or will not be) answered in any other way."""

    request: Request
    error: PenstockError


class Stop(NamedTuple):
    """Nobody waits for this running work any more: stop it as early as its executor can."""

    work: Work


class Retire(NamedTuple):
    """This replica (of a host with several slots, its first) was retired and runs nothing any more: put it away, and report
    `replica_gone`.
    """

    station: Station
    replica: int


Command = Start | Stage | Revoke | End | Stop | Retire
