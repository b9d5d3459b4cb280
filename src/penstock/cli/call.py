"""`penstock call URL key=value ...`: one call, its answer (or its items, as they come) on stdout."""

from __future__ import annotations

import argparse
import http.client
import json
import sys
from typing import Any
from urllib.parse import urlsplit

from penstock.cli import CommandFailed

NAME = "call"
HELP = "call a service over HTTP"


def arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("url", help="for instance http://127.0.0.1:8000/hello, or just hello (on 127.0.0.1:8000)")
    parser.add_argument("parameters", nargs="*", metavar="name=value", help="value is JSON, or else a string")
    parser.add_argument("--json", metavar="OBJECT", help='all parameters at once, as JSON; "-" reads stdin')
    parser.add_argument("--within", type=float, help="deadline in seconds")
    parser.add_argument("--priority", type=int, help="the smaller goes first")
    parser.add_argument("--tenant", help="whose fair share pays")
    parser.add_argument("-v", "--verbose", action="store_true", help="show where the time went")


def run(options: argparse.Namespace) -> None:
    url = options.url if "://" in options.url else f"http://127.0.0.1:8000/{options.url.lstrip('/')}"
    parts = urlsplit(url)
    if parts.scheme != "http" or not parts.hostname:
        raise CommandFailed(f"{options.url!r} is not a URL that can be called; http://host:port/service is")
    headers = {"content-type": "application/json", "accept": "application/x-ndjson, application/json;q=0.9"}
    for name in ("within", "priority", "tenant"):
        value = getattr(options, name)
        if value is not None:
            headers[f"x-penstock-{name}"] = str(value)
    connection = http.client.HTTPConnection(parts.hostname, parts.port or 80)
    try:
        connection.request("POST", parts.path or "/", _body(options), headers)
        _show(connection.getresponse(), options.verbose)
    except ConnectionRefusedError:
        raise CommandFailed(f"nothing listens at {parts.hostname}:{parts.port or 80}; is `penstock serve` running?") from None
    except http.client.HTTPException as error:
        raise CommandFailed(f"the server at {url} broke off: {type(error).__name__}") from error
    finally:
        connection.close()


def _body(options: argparse.Namespace) -> bytes:
    given: dict[str, Any] = {}
    if options.json is not None:
        text = sys.stdin.read() if options.json == "-" else options.json
        try:
            given = json.loads(text)
        except ValueError as error:
            raise CommandFailed(f"--json is not JSON: {error}") from None
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
        body = response.read().decode("utf-8", "replace")
        try:
            problem = json.loads(body)
            detail = f"{problem['title']}: {problem['detail']}"
        except (ValueError, KeyError, TypeError):
            detail = body[:500]
        raise CommandFailed(f"{response.status} {detail}")
    streamed = response.getheader("content-type", "").startswith("application/x-ndjson")
    for line in response:
        text = line.decode("utf-8", "replace").rstrip("\n")
        if streamed and text.startswith('{"error":'):
            raise CommandFailed(json.loads(text)["error"]["detail"])
        print(text, flush=True)
    if verbose:
        print(f"{response.getheader('x-request-id')}  {response.getheader('server-timing')}", file=sys.stderr)
