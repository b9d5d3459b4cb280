"""`penstock scale URL SERVICE N`: more or fewer replicas of a service that is being served."""

from __future__ import annotations

import argparse
import http.client
import json
from urllib.parse import quote

from penstock.cli import CommandFailed
from penstock.cli.server import SERVER, address, connection, token_argument

NAME = "scale"
HELP = "change how many replicas a service of a running server has"


def arguments(parser: argparse.ArgumentParser) -> None:
    shared_arguments(parser)
    parser.add_argument("count", type=int, metavar="N", help="replicas")


def run(options: argparse.Namespace) -> None:
    body = json.dumps({"count": options.count}).encode()
    ask("PUT", options, f"/replicas/{quote(options.service, safe='')}", body)


def shared_arguments(parser: argparse.ArgumentParser) -> None:
    """What every command to a running server's service needs."""
    parser.add_argument("url", help="the server, for instance http://127.0.0.1:8000")
    parser.add_argument("service", help="its name")
    token_argument(parser, "an operator's")


def ask(method: str, options: argparse.Namespace, path: str, body: bytes) -> None:
    """Ask for a change, wait for its end (loading a model may take minutes) and print what is so then."""
    parts = address(options.url if "://" in options.url else f"http://{options.url}", SERVER)
    server = f"{parts.scheme}://{parts.netloc}"
    headers = {"authorization": f"Bearer {options.token}"} if options.token else {}
    asked = connection(parts)
    try:
        asked.request(method, path, body, headers)
        answer = asked.getresponse()
        status, text = answer.status, answer.read()
    except (OSError, http.client.HTTPException) as error:
        raise CommandFailed(f"no answer from {server}: {getattr(error, 'strerror', None) or error}") from error
    finally:
        asked.close()
    try:
        told = json.loads(text)
        if status >= 400:
            raise CommandFailed(f"{status} {told['title']}: {told['detail']}")
        print(f"{options.service}: {told['ready']} of {told['wanted']} replicas are ready")
    except (ValueError, KeyError, TypeError):
        raise CommandFailed(f"{server} is no penstock server (or another version): {status} at {path}") from None
