"""`penstock token add|list|remove`: the bearer tokens of `penstock serve --tokens FILE`."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from penstock.errors import ConfigError
from penstock.runtime.tokens import Tenant, changed, issue, read, revoke

NAME = "token"
HELP = "make, list and remove bearer tokens"


def arguments(parser: argparse.ArgumentParser) -> None:
    actions = parser.add_subparsers(required=True, metavar="ACTION", dest="action")
    add = actions.add_parser("add", help="make a token and print it, for the only time; the file keeps its hash")
    add.add_argument("name", help="what the token is called, for instance who holds it")
    add.add_argument("--tenant", help="whose quota and fair share its calls use (default: NAME)")
    add.add_argument("--weight", type=float, help="the tenant's weight in fair shares (default 1)")
    add.add_argument("--rate", type=float, metavar="PER_SECOND", help="the tenant's quota of calls a second (default: none)")
    add.add_argument("--burst", type=int, help="how much of the quota may come at once (default: a second's)")
    add.add_argument("--rpm", type=int, metavar="N", help="a quota of N calls a minute, all of which may come at once")
    add.add_argument("--tpm", type=float, metavar="N", help="the tenant's quota of model tokens a minute, prompts and answers")
    add.add_argument("--priority", type=int, help="the most urgent priority that the tenant's calls may have (default 0)")
    add.add_argument("--operator", action="store_true", help="may read /metrics and /status, and name any tenant")
    remove = actions.add_parser("remove", help="remove a token; servers know within a second")
    remove.add_argument("name")
    for action in (add, remove, actions.add_parser("list", help="the tokens and tenants of a file")):
        action.add_argument("--file", type=Path, default=Path("tokens.json"), help="default: %(default)s")
        action.add_argument("--debug", action="store_true", help="show tracebacks")


def run(options: argparse.Namespace) -> None:
    {"add": _add, "remove": _remove, "list": _list}[options.action](options)


def _add(options: argparse.Namespace) -> None:
    if options.rpm is not None and (options.rate is not None or options.burst is not None):
        raise ConfigError("--rpm is another form of --rate and --burst; give one of them")
    tenant = options.tenant or options.name
    with changed(options.file) as book:
        token = issue(book, options.name, tenant, options.operator)
        given = {"weight": options.weight, "priority": options.priority, "per_second": options.rate, "burst": options.burst}
        given["tokens_per_minute"] = options.tpm
        if options.rpm is not None:
            given |= {"per_second": options.rpm / 60, "burst": options.rpm}
        for field, value in given.items():
            if value is not None:
                setattr(book.tenants[tenant], field, value)
    print(token)
    print(f"{options.file} keeps its hash only; pass it as `Authorization: Bearer`, or $PENSTOCK_TOKEN", file=sys.stderr)


def _remove(options: argparse.Namespace) -> None:
    read(options.file)  # there must be one
    with changed(options.file) as book:
        revoke(book, options.name)


def _list(options: argparse.Namespace) -> None:
    book = read(options.file)
    for identity, token in book.tokens.items():
        tenant = book.tenants.get(token.tenant, Tenant())
        quota = "no quota" if tenant.per_second is None else f"{tenant.per_second:g} calls/s"
        if tenant.tokens_per_minute is not None:
            quota += f", {tenant.tokens_per_minute:g} tokens/min"
        kind = ", operator" if token.operator else ""
        print(f"{token.name:20} pst_{identity}_...  tenant {token.tenant} (weight {tenant.weight:g}, {quota}){kind}")
