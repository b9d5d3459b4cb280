"""`penstock call URL key=value ...`: one call, its answer (or its items, as they come) on stdout."""

from __future__ import annotations

import argparse
import http.client
import json
import re
import socket
import sys
from typing import Any

from penstock.cli import CommandFailed
from penstock.cli.server import SERVICE, address, connection, token_argument

NAME = "call"
HELP = "call a service over HTTP"


def arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("url", help="a URL, host:port/service, or just the service (on 127.0.0.1:8000)")
    parser.add_argument("parameters", nargs="*", metavar="name=value", help="value is JSON, or else a string")
    parser.add_argument("--json", metavar="OBJECT", help='all parameters at once, as JSON; "-" reads stdin')
    parser.add_argument("--within", type=float, help="deadline in seconds")
    parser.add_argument("--priority", type=int, help="the smaller goes first")
    parser.add_argument("--tenant", help="whose fair share pays")
    token_argument(parser, "bearer token")
    parser.add_argument("-v", "--verbose", action="store_true", help="show where the time went")


def run(options: argparse.Namespace) -> None:
    parts = address(_url(options.url), SERVICE)
    # A stream comes as lines; anything else in its own form.
    headers = {"content-type": "application/json", "accept": "application/json, application/x-ndjson;q=0.9"}
    for name in ("within", "priority", "tenant"):
        value = getattr(options, name)
        if value is not None:
            headers[f"x-penstock-{name}"] = str(value)
    if options.token:
        headers["authorization"] = f"Bearer {options.token}"
    server = connection(parts)
    where = f"{parts.hostname}:{server.port}"
    path = (parts.path or "/") + (f"?{parts.query}" if parts.query else "")
    try:
        server.request("POST", path, _body(options), headers)
        _show(server.getresponse(), options.verbose)
    except ConnectionRefusedError:
        raise CommandFailed(f"nothing listens at {where}; is `penstock serve` running?") from None
    except socket.gaierror as error:
        raise CommandFailed(f"{parts.hostname!r} is not a host that is known: {error.strerror}") from error
    except (http.client.HTTPException, ConnectionResetError, UnicodeError) as error:
        raise CommandFailed(f"the server at {where} broke off: {type(error).__name__}") from error
    except ValueError as error:  # a line end in a token
        raise CommandFailed(f"this cannot be sent: {error}") from error
    finally:
        server.close()


def _url(given: str) -> str:
    if "://" in given:
        return given
    if re.match(r"[\w.-]+:\d+(/|$)", given):
        return f"http://{given}"
    return f"http://127.0.0.1:8000/{given.lstrip('/')}"


def _body(options: argparse.Namespace) -> bytes:
    given: dict[str, Any] = {}
    if options.json is not None:
        text = sys.stdin.read() if options.json == "-" else options.json
        try:
            given = json.loads(text)
        except ValueError as error:
            raise CommandFailed(f"--json is not JSON: {error}") from None
        if not isinstance(given, dict):
            raise CommandFailed("--json takes an object: {...}")
    for item in options.parameters:
        name, mark, value = item.partition("=")
        if not mark:
            raise CommandFailed(f"{item!r}: parameters are given as name=value")
        try:
            given[name] = json.loads(value)
        except ValueError:
            given[name] = value
    return json.dumps(given).encode()


def _show(response: http.client.HTTPResponse, verbose: bool) -> None:
    if response.status >= 400:
        raise CommandFailed(f"{response.status} {_told(response)}")
    kind = response.getheader("content-type", "")
    if kind.startswith("application/octet-stream"):
        while piece := response.read1():
            sys.stdout.buffer.write(piece)
        sys.stdout.buffer.flush()
    else:
        _show_lines(response, kind.startswith("application/x-ndjson"))
    if verbose:
        print(f"{response.getheader('x-request-id')}  {response.getheader('server-timing')}", file=sys.stderr)


def _show_lines(response: http.client.HTTPResponse, streamed: bool) -> None:
    for line in response:
        text = line.decode("utf-8", "replace").rstrip("\n")
        if streamed and not text:
            continue  # a heartbeat
        if streamed and text.startswith('{"error":{"type":"urn:penstock:'):
            raise CommandFailed(json.loads(text)["error"]["detail"])
        print(text, flush=True)


def _told(response: http.client.HTTPResponse) -> str:
    body = response.read().decode("utf-8", "replace")
    try:
        problem = json.loads(body)
        return f"{problem['title']}: {problem['detail']}"
    except (ValueError, KeyError, TypeError):
        return " ".join(body[:500].split()) or response.reason
