"""An application: the services that are started and served together."""

from __future__ import annotations

import os
from collections.abc import Awaitable, Callable, Iterable, Mapping, MutableMapping, Sequence
from typing import Any

from penstock.core.policy.declared import whole
from penstock.errors import ConfigError
from penstock.models import Model
from penstock.runtime.sizes import Profile, sizes
from penstock.runtime.tokens import Tokens
from penstock.service import Service

Scope = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[MutableMapping[str, Any]]]
Send = Callable[[MutableMapping[str, Any]], Awaitable[None]]
ASGIApp = Callable[[Scope, Receive, Send], Awaitable[None]]


class App:
    """Services by name, and how they are served.

    `cors` is the list of origins that browsers may call from ("*" for any), `max_body` the largest request in bytes,
    `mounts` maps path prefixes to other ASGI applications, `log=False` drops the line per request,
    `tokens` is a file of bearer tokens that callers need (`penstock token add`). `models` are served at `/v1/...`, as clients
    of OpenAI, Cohere and others expect them (`penstock.models`, `penstock.engines`); with `chat_page` a page at `/chat` talks
    to them. An App is itself
    an ASGI application: serve it with `penstock serve module:app`, or mount it in Starlette or FastAPI, whose lifespan
    then should hold `async with penstock.Runtime(app)` (else the app loads at its first request, and does not drain).
    """

    def __init__(
        self,
        *services: Service[..., Any],
        name: str = "penstock",
        profile: Profile | None = None,
        cors: Sequence[str] = (),
        max_body: int = 16 << 20,
        mounts: Mapping[str, ASGIApp] | None = None,
        log: bool = True,
        tokens: str | os.PathLike[str] | None = None,
        models: Sequence[Model] = (),
        chat_page: bool = False,
        debug: bool = False,
    ) -> None:
        self.services: dict[str, Service[..., Any]] = {}
        for each in services:
            if not isinstance(each, Service):
                raise ConfigError(f"App(...) takes services, not {each!r}; make one with @penstock.service")
            self._add(each)
        self.public = tuple(self.services)  # those that have a path of their own
        self.models: list[Model] = []
        for model in models:
            self.add_model(model)
        if isinstance(cors, str):
            raise ConfigError(f"App(cors={cors!r}): a list of origins, for instance [{cors!r}]")
        cors = tuple(cors) if isinstance(cors, Iterable) else (cors,)
        if not all(isinstance(origin, str) for origin in cors):
            raise ConfigError(f"App(cors={cors!r}): a list of origins, for instance ['https://example.org']")
        whole("App(max_body=...), in bytes", max_body, 0)
        for prefix, other in (mounts or {}).items():
            if not prefix.startswith("/") or not callable(other):
                raise ConfigError(f"App(mounts={{{prefix!r}: {other!r}}}): a path that begins with /, and an ASGI application")
        sizes(profile)  # refuse an unknown profile here, not at start
        self.name = name
        self.profile = profile
        self.cors = cors
        self.max_body = max_body
        self.mounts = dict(mounts or {})
        self.log = log
        self.tokens = None if tokens is None else Tokens(tokens)
        self.chat_page = chat_page
        if chat_page and "chat" in self.public:
            raise ConfigError("App(chat_page=True): the page is at /chat, and so is the service 'chat'; give that another name")
        self.debug = debug
        self._asgi: ASGIApp | None = None

    def add_model(self, model: Model) -> None:
        """Serve one more model; before the app starts."""
        if any(other.name == model.name and other.task == model.task for other in self.models):
            raise ConfigError(f'two {model.task} models are named {model.name!r}; give one another name: name="..."')
        self.models.append(model)
        for each in model.services:
            self._add(each)

    def _add(self, service: Service[..., Any]) -> None:
        if self.services.setdefault(service.name, service) is not service:
            raise ConfigError(f'two services are named {service.name!r}; give one another name: service(..., name="...")')

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if self._asgi is None:
            from penstock.http.asgi import application  # a service's module should not load the HTTP layer

            self._asgi = application(self)
        await self._asgi(scope, receive, send)


def listed(given: Sequence[App | Service[..., Any]]) -> dict[str, Service[..., Any]]:
    """All services of these, by name. Raises ConfigError for two of one name, and for what is neither."""
    found: dict[str, Service[..., Any]] = {}
    for each in given:
        if not isinstance(each, App | Service):
            raise ConfigError(f"Runtime(...) takes services and apps, not {each!r}; make one with @penstock.service")
        for service in each.services.values() if isinstance(each, App) else (each,):
            if found.setdefault(service.name, service) is not service:
                raise ConfigError(f"two services are named {service.name!r}")
    return found
