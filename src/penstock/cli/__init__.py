"""The `penstock` command: serve an app, call a service, measure and watch it, tell what is installed."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence

from penstock.errors import PenstockError


class CommandFailed(Exception):
    """What the user should read: one line."""


def main(argv: Sequence[str] | None = None) -> None:
    """Parse and run; errors are one clear line and exit code 1 (2 for wrong arguments), `--debug` shows tracebacks."""
    arguments = parser()
    options, rest = arguments.parse_known_args(argv)
    if rest and (not hasattr(options, "parameters") or any(word.startswith("-") for word in rest)):
        arguments.error(f"unrecognized arguments: {' '.join(rest)}")
    elif rest:
        options.parameters += rest  # argparse takes no more of them once an option has come between
    try:
        options.run(options)
    except KeyboardInterrupt:
        raise SystemExit(130) from None
    except BrokenPipeError:  # `| head` has read enough; what is still buffered must not complain again at exit
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        raise SystemExit(1) from None
    except (CommandFailed, PenstockError, OSError) as error:
        if options.debug:
            raise
        print(f"penstock: {error}", file=sys.stderr)
        raise SystemExit(1) from None


def parser() -> argparse.ArgumentParser:
    """The arguments of every command."""
    from penstock.cli import bench, call, info, roll, scale, serve, token, top

    command_line = argparse.ArgumentParser(prog="penstock", description="Run AI models asynchronously, well.")
    command_line.add_argument("--version", action="version", version=f"penstock {info.version_of('penstock')}")
    commands = command_line.add_subparsers(required=True, metavar="COMMAND")
    for module in (serve, call, bench, top, scale, roll, token, info):
        command = commands.add_parser(module.NAME, help=module.HELP, description=module.HELP)
        command.add_argument("--debug", action="store_true", help="show tracebacks")
        module.arguments(command)
        command.set_defaults(run=module.run)
    return command_line
