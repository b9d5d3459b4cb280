"""Reading a declaration: what kind of body a function or class is, and how its callers see it."""

from __future__ import annotations

import functools
import inspect
import re
import typing
from collections.abc import AsyncGenerator, AsyncIterable, AsyncIterator, Callable, Generator, Iterator, Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from penstock.core.policy.admit import Latest, Queue
from penstock.core.policy.batch import Batch
from penstock.core.policy.cache import Cache
from penstock.core.policy.declared import is_number, whole
from penstock.core.policy.limit import Limit
from penstock.core.policy.order import Order
from penstock.core.policy.retry import Retry
from penstock.core.policy.route import Route
from penstock.core.policy.slots import Slots
from penstock.core.pool import Pool
from penstock.errors import ConfigError
from penstock.executors.base import Body, Inline, Place, Process, Thread, fewest

if TYPE_CHECKING:
    from penstock.service import ServiceOptions

_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_.-]*\Z")


def describe(target: Any, args: tuple[Any, ...], name: str | None, batched: bool, slots: Slots | None = None) -> Body:
    """What `target` is. Raises ConfigError for what cannot be a service."""
    kwargs: dict[str, Any] = {}
    if isinstance(target, functools.partial) and inspect.isclass(target.func):
        target, args, kwargs = target.func, (*target.args, *args), dict(target.keywords)
    is_class = inspect.isclass(target)
    if not callable(target):
        raise ConfigError(f"a service is made of a function or a class, not of {target!r}")
    if slots is not None:
        return _stepping(target, args, kwargs, name, slots)
    if is_class and not any("__call__" in vars(base) for base in target.__mro__):
        raise ConfigError(f"class {target.__name__} has no __call__ method to serve requests with")
    if args and not is_class:
        raise ConfigError(f"{_title(target)}: arguments are for the constructors of classes; a function takes none here")
    call = target.__call__ if is_class else target
    if not is_class and not inspect.isroutine(target) and not isinstance(target, functools.partial):
        call = type(target).__call__
    streams = inspect.isasyncgenfunction(call) or inspect.isgeneratorfunction(call)
    return Body(
        name=_service_name(target, name),
        target=target,
        args=args,
        kwargs=kwargs,
        is_class=is_class,
        is_async=inspect.iscoroutinefunction(call) or inspect.isasyncgenfunction(call),
        batched=batched,
        streams=streams,
    )


def _stepping(target: Any, args: tuple[Any, ...], kwargs: dict[str, Any], name: str | None, slots: Slots) -> Body:
    """A class with add, step and drop."""
    missing = [method for method in ("add", "step", "drop") if not callable(getattr(target, method, None))]
    if not inspect.isclass(target) or missing:
        lacks = f"lacks {', '.join(missing)}" if inspect.isclass(target) else "is no class"
        raise ConfigError(
            f"{_title(target)} {lacks}: with Slots a service is a class with add(slot, ...), step(slots) and drop(slot)"
        )
    step = step_of(target)
    if inspect.isgeneratorfunction(step) or inspect.isasyncgenfunction(step):
        raise ConfigError(f"{_title(target)}.step is a generator; return a list of (slot, item) pairs")
    return Body(
        name=_service_name(target, name),
        target=target,
        args=args,
        kwargs=kwargs,
        is_class=True,
        is_async=inspect.iscoroutinefunction(step),
        streams=slots.stream,
        steps=True,
    )


def elsewhere(body: Body) -> Body:
    """The body of a service that runs on other servers: its signature is all that is used of it."""
    if body.is_class or body.steps:
        raise ConfigError(f"{body.name}: with on=ps.Remote(...) a service is declared by a function; write `...` as its body")
    returns = typing.get_origin(_hints(body.target).get("return"))
    return replace(body, is_async=False, streams=body.streams or returns in _STREAMS)


_STREAMS = (AsyncIterator, AsyncGenerator, AsyncIterable, Iterator, Generator)


def _title(target: Any) -> str:
    return str(getattr(target, "__qualname__", repr(target)))


def _service_name(target: Any, name: str | None) -> str:
    if name is None:
        name = str(getattr(target, "__name__", type(target).__name__))
        if inspect.isclass(target):
            name = re.sub(r"(?<=[a-z0-9])(?=[A-Z])", "_", name).lower()
    if not isinstance(name, str) or not _NAME.match(name):
        raise ConfigError(f"{name!r} cannot be a service's name (letters, digits, '_', '-', '.'); give one: name=\"...\"")
    return name


def vars_call(cls: Any) -> Any:
    """The `__call__` that instances of a class have (the class itself is callable too, which constructs one)."""
    return cls.__call__


def add_of(cls: Any) -> Any:
    """The `add` of a class with slots."""
    return cls.add


def step_of(cls: Any) -> Any:
    """The `step` of a class with slots."""
    return cls.step


def call_of(body: Body) -> Callable[..., Any]:
    """The function that serves one request (or one batch), for its signature."""
    if body.is_class:
        call: Callable[..., Any] = add_of(body.target) if body.steps else vars_call(body.target)
        return call
    return body.target


def caller_signature(body: Body) -> inspect.Signature:
    """How callers see the body: without `self`, and with single items where a batched body takes lists."""
    call = call_of(body)
    signature = inspect.signature(call)
    hints = _hints(call if inspect.isroutine(call) or body.is_class else type(call).__call__)
    parameters = list(signature.parameters.values())[body.is_class + body.steps :]
    seen = [p.replace(annotation=hints.get(p.name, p.annotation)) for p in parameters]
    returns = hints.get("return", signature.return_annotation)
    if body.steps:
        returns = _pair_item(_hints(step_of(body.target)).get("return"))
    elif body.batched:
        seen = [_item(parameter) for parameter in seen]
        returns = _without_exceptions(_element(returns))
    elif body.streams:
        returns = _element(returns)
    return inspect.Signature(seen, return_annotation=returns)


def _hints(call: Any) -> dict[str, Any]:
    try:
        return typing.get_type_hints(call, include_extras=True)
    except Exception:  # a name that exists only for type checkers: fall back to what the function itself has
        return {k: v for k, v in getattr(call, "__annotations__", {}).items() if not isinstance(v, str)}


def _element(annotation: Any) -> Any:
    arguments = typing.get_args(annotation)
    return arguments[0] if arguments else inspect.Parameter.empty


def _pair_item(annotation: Any) -> Any:
    """What a step's pairs hold: `list[tuple[int, str]]` is `str` to callers."""
    pair = typing.get_args(_element(annotation))
    return pair[1] if len(pair) == 2 else inspect.Parameter.empty


def _item(parameter: inspect.Parameter) -> inspect.Parameter:
    """`texts: list[str]` is `text: str` to callers."""
    element = _element(parameter.annotation)
    name = parameter.name
    if element is not inspect.Parameter.empty and len(name) > 1 and name.endswith("s") and not name.endswith("ss"):
        name = name[:-1]
    return parameter.replace(name=name, annotation=element)


def _without_exceptions(annotation: Any) -> Any:
    options = typing.get_args(annotation)
    if not options:
        return annotation
    kept = [o for o in options if not (inspect.isclass(o) and issubclass(o, BaseException))]
    return typing.Union[tuple(kept)] if kept and len(kept) < len(options) else annotation  # noqa: UP007 - at run time


# What an option is: its type, and how to say so.
_KINDS: dict[str, tuple[Any, str]] = {
    "batch": (Batch | Slots, "ps.Batch(...) or ps.Slots(...)"),
    "admit": (Queue | Latest, "ps.Queue(...), ps.Latest(...), or a tuple of both"),
    "order": (Order, "ps.Fifo(), ps.EarliestDeadline(), ps.FairShare() or ps.Priority()"),
    "limit": (Limit, "ps.Fixed(n), ps.AIMD(), ps.Rate(...), or a tuple of them"),
    "retry": (Retry, "ps.Retry(...)"),
    "route": (Route, "a policy of penstock.policy, such as LeastCost()"),
    "on": (Place, "ps.Inline(), ps.Thread(), ps.Process() or ps.Remote(urls)"),
    "needs": (Mapping, "a dict from pools to amounts"),
    "size": (Callable, "a function of the call's arguments that gives bytes"),
    "cache": (Cache, "ps.Cache(...)"),
}


def accept(**given: Any) -> None:
    """Refuse options that are of another kind: a class for its instance, a list for a tuple, a number for a policy."""
    for option, value in given.items():
        kind, what = _KINDS[option]
        several = value if isinstance(value, tuple) and option in ("admit", "limit") else (value,)
        if value is not None and not all(isinstance(each, kind) for each in several):
            raise ConfigError(f"service({option}={value!r}): give {what}")


def validate(body: Body, options: ServiceOptions) -> None:
    """Refuse options that contradict the body or each other."""
    name, on = body.name, options.on
    if body.batched and body.streams:
        raise ConfigError(f"{name}: a batched body cannot be a generator; return one list")
    if options.route is not None and (on is None or isinstance(on, Inline)) and not body.batched and not body.is_class:
        raise ConfigError(f"{name}: route= chooses between replicas, and this service has none that differ")
    if isinstance(on, Thread) and body.is_async:
        raise ConfigError(f"{name} is async and runs on the loop: use on=ps.Inline(), or on=ps.Process()")
    if isinstance(on, Inline) and not body.is_async:
        raise ConfigError(f"{name} is not async and would block the loop: use on=ps.Thread() or on=ps.Process()")
    if isinstance(on, Inline) and fewest(on.replicas) > 1 and not body.batched and not body.is_class:
        raise ConfigError(f"{name}: an async function has no replicas; bound it with limit=ps.Fixed({on.replicas})")
    if isinstance(on, Process):
        _importable(body)
        if on.concurrency > 1 and (body.batched or body.steps or not body.is_async):
            raise ConfigError(f"{name}: Process(concurrency={on.concurrency}) is for an async body, without batch=")
    if options.retry is not None and not options.safe:
        raise ConfigError(f"{name}: retry= runs a call again, so declare that this is harmless: safe=True")
    kinds = [type(policy) for policy in options.admit]
    if kinds.count(Queue) > 1 or kinds.count(Latest) > 1:
        raise ConfigError(f"{name}: admit= takes at most one Queue and one Latest")
    if options.cache is not None and body.streams:
        raise ConfigError(f"{name}: cache= keeps answers that are whole; a stream cannot be cached")
    for pool, amount in (options.needs or {}).items():
        if not isinstance(pool, Pool) or not (callable(amount) or (is_number(amount) and amount > 0)):
            raise ConfigError(f"{name}: needs={{{pool!r}: {amount!r}}}: a Pool or a Memory, and a number or a function")
    whole(f"{name}: buffer=...", options.buffer)


def _importable(body: Body) -> None:
    qualname = getattr(body.target, "__qualname__", "")
    if "<" in qualname or not qualname:
        what = qualname or repr(body.target)
        raise ConfigError(f"{body.name}: a child process imports its body by name; define {what} at module level")
