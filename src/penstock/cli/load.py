"""Finding the app that `module:name` or `path/to/file.py:name` means."""

from __future__ import annotations

import importlib
import importlib.util
import os
import sys
from types import ModuleType

from penstock import App, Service
from penstock.cli import CommandFailed


def load_app(target: str) -> App:
    """The App (or the lone service, as an app) that `target` names. Raises CommandFailed with what to do.

    What else the module raises while it is loaded is passed on.
    """
    where, _, name = target.partition(":")
    if not where:
        raise CommandFailed(f"{target!r}: give module:name, for instance hello:app")
    module = _import(where)
    found = getattr(module, name or "app", None)
    if isinstance(found, Service):
        return App(found, name=found.name)
    if isinstance(found, App):
        return found
    apps = [key for key, value in vars(module).items() if isinstance(value, App | Service)]
    hint = f"; {where} has {', '.join(apps)}" if apps else "; make one: app = penstock.App(service)"
    if found is None:
        raise CommandFailed(f"{where} has nothing named {name or 'app'!r}{hint}")
    raise CommandFailed(f"{target} is a {type(found).__name__}, not a penstock.App{hint}")


def _import(where: str) -> ModuleType:
    path = ""
    if where.endswith(".py"):
        path = os.path.realpath(where)
        if not os.path.exists(path):
            raise CommandFailed(f"there is no file {where}")
        sys.path.insert(0, os.path.dirname(path))
        where = os.path.splitext(os.path.basename(path))[0]
    elif "" not in sys.path and os.getcwd() not in sys.path:
        sys.path.insert(0, os.getcwd())
    try:
        module = importlib.import_module(where)
    except ModuleNotFoundError as error:
        if error.name is not None and (where == error.name or where.startswith(error.name + ".")):
            raise CommandFailed(f"there is no module {where!r} here ({os.getcwd()})") from error
        raise CommandFailed(f"{where} needs the module {error.name!r}, which is not installed") from error
    except SyntaxError as error:
        raise CommandFailed(f"{error.filename}:{error.lineno}: {type(error).__name__}: {error.msg}") from error
    except SystemExit as error:
        raise CommandFailed(f"{where} called sys.exit({error.code!r}) while it was loaded") from error
    if path and os.path.realpath(module.__file__ or "") != path:
        raise CommandFailed(f"{path}: its name is that of another module, {module.__file__ or where}; rename the file")
    return module
