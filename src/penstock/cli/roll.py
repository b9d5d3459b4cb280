"""`penstock roll URL SERVICE`: every replica of a service that is being served anew, one after the other."""

from __future__ import annotations

import argparse
from urllib.parse import quote

from penstock.cli.scale import ask, shared_arguments

NAME = "roll"
HELP = "replace every replica of a service of a running server, each new one ready before an old one drains"

arguments = shared_arguments


def run(options: argparse.Namespace) -> None:
    ask("POST", options, f"/replicas/{quote(options.service, safe='')}/roll", b"")
