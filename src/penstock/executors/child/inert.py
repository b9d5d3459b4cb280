"""What a user's module finds as `penstock` in an interpreter that has none: declarations that do nothing.

`@ps.service` keeps the body, so that it can be found; every other name is there, takes any arguments and does nothing. The
errors are real, since bodies raise them.
"""

from __future__ import annotations

import importlib
import importlib.util
import os
import re
import sys
import types
from typing import Any

from .end import END

_HERE = os.path.dirname(os.path.abspath(__file__))
_ERRORS = os.path.join(_HERE, os.pardir, os.pardir, "errors.py")
_ENGINES = os.path.abspath(os.path.join(_HERE, os.pardir, os.pardir, "engines"))


class Anything:
    """Takes whatever a declaration gives it."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        pass

    def __class_getitem__(cls, item: Any) -> Any:
        return cls

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return args[0] if len(args) == 1 and callable(args[0]) and not kwargs else self

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        return Anything()

    def __enter__(self) -> Any:
        return self

    def __exit__(self, *error: Any) -> None:
        pass


class Body:
    """As much of a declaration as its child needs."""

    def __init__(self, target: Any) -> None:
        self.target = target


class Service:
    """A declared service: its body, its name, and the way to it from here."""

    runtime: Any = None

    def __init__(self, target: Any, name: str | None) -> None:
        self.body = Body(target)
        if name is None:
            name = str(getattr(target, "__name__", type(target).__name__))
            if isinstance(target, type):
                name = re.sub(r"(?<=[a-z0-9])(?=[A-Z])", "_", name).lower()
        self.name = name

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return self.runtime.call(self, args, kwargs)

    def submit(self, *args: Any, **kwargs: Any) -> Any:
        """As `penstock.Service.submit`."""
        return self.runtime.submit(self, args, kwargs)


def service(target: Any = None, *args: Any, name: str | None = None, **options: Any) -> Any:
    """As `penstock.service`, a decorator or a call."""
    if target is None:
        return lambda found: Service(found, name)
    return Service(target, name)


def install() -> None:
    """Put this in the place of penstock, unless the interpreter has the real one."""
    try:
        importlib.import_module("penstock")
        return
    except ImportError:
        for name in [name for name in sys.modules if name == "penstock" or name.startswith("penstock.")]:
            del sys.modules[name]
    package = _module("penstock")
    policy = _module("penstock.policy")
    spec = importlib.util.spec_from_file_location("penstock.errors", os.path.abspath(_ERRORS))
    assert spec is not None and spec.loader is not None
    errors = sys.modules["penstock.errors"] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(errors)
    vars(_module("penstock.engines"))["__path__"] = [_ENGINES]  # of which some are made for other interpreters
    vars(package).update(__path__=[], service=service, Service=Service, policy=policy, errors=errors, END=END)


def _module(name: str) -> types.ModuleType:
    module = types.ModuleType(name, __doc__)

    def missing(attribute: str) -> Any:
        if attribute.startswith("__"):
            raise AttributeError(attribute)
        return Anything

    vars(module)["__getattr__"] = missing
    sys.modules[name] = module
    return module
