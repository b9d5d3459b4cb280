"""Relaying OpenAI's protocol: `Remote(encoding="openai")`.

A call is a path of that protocol, `/v1` being what the server's URL has in its place, and a body that is sent as it is (None:
a GET). The answer is a stream: its one JSON
object, or each server-sent event. A stream is complete when it says so (`[DONE]`, a last event of the Responses API), or
when every choice has its `finish_reason`; one that ends before is broken off, and that is an error, never an end.
"""

from __future__ import annotations

import inspect
import re
import time
from collections.abc import Mapping, Sequence
from email.utils import parsedate_to_datetime
from typing import Any

import msgspec

import penstock.errors as errors
from penstock.codec import JSON, encode_json
from penstock.codec.read import line
from penstock.errors import ConfigError, InvalidRequest, PenstockError, RateLimited, RemoteFailed
from penstock.executors.base import Body
from penstock.executors.remote_place import Remote
from penstock.executors.remote_stream import Items
from penstock.executors.remote_wire import EVENTS, Wire

_LAST = ("response.completed", "response.incomplete", "response.failed")  # of the Responses API, which sends no [DONE]
_MEANT: dict[int, type[PenstockError]] = {
    400: InvalidRequest,
    404: errors.NotFound,
    413: errors.TooLarge,
    415: errors.UnsupportedMedia,
    422: errors.ValidationFailed,
    429: RateLimited,
}
_KINDS = {"invalid_request_error": 400, "rate_limit_error": 429, "overloaded_error": 503}  # in a stream
_UNITS = {"ms": 0.001, "s": 1.0, "m": 60.0, "h": 3600.0, "d": 86400.0}


class Relay(Wire):
    """Requests as they are, and answers as they come."""

    def __init__(self, body: Body, signature: inspect.Signature, options: Remote) -> None:
        super().__init__(body, signature, options)
        if body.batched or not body.streams or len(self.fields) != 2:
            raise ConfigError(f'{body.name}: with encoding="openai" a service is relay(path: str, body: dict) -> AsyncIterator')

    def request(self, target: bytes, requests: Sequence[Any]) -> tuple[bytes, bytes]:
        """The request line under the URL whose path is `target`, and the body. Raises InvalidRequest."""
        path, body = self.asked(requests)
        if not isinstance(path, str) or not re.fullmatch(r"/[!-~]*", path):
            raise InvalidRequest(f"{self.name}: the path {path!r}; one that begins with /")
        base, _, query = target.partition(b"?")
        place = base.rstrip(b"/") + re.sub(r"^/v1(?=/|$)", "", path).encode("ascii")
        if query:
            place += (b"&" if b"?" in place else b"?") + query
        return (b"GET " + place, b"") if body is None else (b"POST " + place, self._encoded(encode_json, body))

    def asked(self, requests: Sequence[Any]) -> tuple[Any, Any]:
        """The path and the body that the service was called with."""
        given = self.given(requests)
        return tuple(given.get(field) for field in self.fields)  # type: ignore[return-value]

    def items(self, media: str, most: int, where: str, requests: Sequence[Any]) -> Items:
        """What cuts this answer into items."""
        body = self.asked(requests)[1]
        asked = body if isinstance(body, Mapping) else {}
        if media not in (EVENTS, JSON) or (media == EVENTS) != bool(asked.get("stream")):
            wanted = "events were" if asked.get("stream") else "an object was"
            raise RemoteFailed(f"{where} answered {media or 'nothing that says its type'} where {wanted} asked for")
        return Events(self, media, most, where, asked.get("n")) if media == EVENTS else Whole(self, media, most, where)

    def error(self, status: int, body: bytes, headers: Mapping[bytes, bytes], where: str) -> PenstockError:
        """The exception for an answer that is not a success."""
        return refused(status, _told(body), where, _later(status, headers))


class Whole(Items):
    """An answer that is one JSON object."""

    whole = False

    def feed(self, data: bytes) -> None:
        """More of it has come. Raises RemoteFailed when it is too large."""
        self.buffer += data
        if len(self.buffer) > self.most:
            raise RemoteFailed(f"{self.where}: its answer has more than {self.most} bytes")

    def rest(self) -> None:
        """It has come."""
        self.whole = True

    def waits(self) -> bool:
        """Whether it is there, and was not taken."""
        return self.whole

    def take(self, most: int) -> list[Any]:
        """The object. Raises what the server said went wrong."""
        self.whole = False
        return [_sound(self.wire, bytes(self.buffer), self.where)]


class Events(Items):
    """An answer in server-sent events."""

    def __init__(self, wire: Wire, media: str, most: int, where: str, choices: object) -> None:
        super().__init__(wire, media, most, where)
        self.choices = choices if isinstance(choices, int) else 1
        self.finished: set[str] = set()
        self.last = False

    def end(self) -> BaseException | None:
        """Why the answer is not complete, now that no more of it will come."""
        if self.over or self.last or len(self.finished) >= self.choices:
            return None
        return RemoteFailed(f"{self.where} broke off in the middle of its stream, without a finish_reason")

    def _event(self, piece: bytes, found: list[Any]) -> None:
        data = b"\n".join(row[5:].removeprefix(b" ") for row in piece.split(b"\n") if row.startswith(b"data:"))
        if data == b"[DONE]":
            self.over = True
        elif data:
            event = _sound(self.wire, data, self.where)
            self.last = event.get("type") in _LAST
            choices = event.get("choices")
            for choice in choices if isinstance(choices, list) else ():
                if isinstance(choice, dict) and choice.get("finish_reason"):
                    self.finished.add(str(choice.get("index")))
            found.append(event)


def _sound(wire: Wire, data: bytes, where: str) -> dict[str, Any]:
    """An object that is not an error. Raises the error that it is."""
    try:
        told = wire.item(data)
    except RemoteFailed as error:
        raise RemoteFailed(f"{where}: {error}") from None
    if not isinstance(told, dict):
        raise RemoteFailed(f"{where} answered {line(repr(told))}, which is no object")
    if told.get("type") == "error" or (told.get("error") and "object" not in told and "type" not in told):
        inner = _inner(told)
        code = inner.get("code")
        status = code if isinstance(code, int) and 400 <= code < 600 else _KINDS.get(str(inner.get("type")), 500)
        raise refused(status, told, where)
    return told


def refused(status: int, told: dict[str, Any], where: str, later: float | None = None) -> PenstockError:
    """The exception that an error body means. Only what is the server's fault names it: others are told to callers outside.

    That our key is not accepted is nobody's business there, and the text may quote the key.
    """
    if status in (401, 403):
        return RemoteFailed(f"{where} answered {status}: it does not accept the key that it is called with")
    inner = _inner(told)
    said = inner.get("message") or inner.get("detail") or ""
    detail = line(said if isinstance(said, str) else encode_json(said).decode())
    kind = errors.Overloaded if inner.get("type") == "overloaded_error" else _MEANT.get(status)
    if kind is None:
        return RemoteFailed(f"{where} answered {status}{f': {detail}' if detail else ''}", retry_after=later)
    error = kind(detail or f"the remote answered {status}", retry_after=later)
    vars(error).update((key, inner[key]) for key in ("param", "code") if isinstance(inner.get(key), str))
    return error


def _inner(told: dict[str, Any]) -> dict[str, Any]:
    """What an error body says; servers differ in how deep."""
    inner = told.get("error")
    return inner if isinstance(inner, dict) else {**told, "message": inner or told.get("message")}


def _told(body: bytes) -> dict[str, Any]:
    try:
        told = msgspec.json.decode(body)
    except (msgspec.DecodeError, UnicodeError, RecursionError):
        told = body[:200].decode("utf-8", "replace").strip()
    return told if isinstance(told, dict) else {"error": told}


def _later(status: int, headers: Mapping[bytes, bytes]) -> float | None:
    """When to come again, in seconds. Of a used-up rate also from when its limits will be full again."""
    plain = headers.get(b"retry-after", b"").decode("latin-1")
    waits = [seconds(headers.get(b"retry-after-ms", b"").decode("latin-1") + "ms"), seconds(plain)]
    if plain and waits[1] is None:
        try:
            waits.append(max(0.0, parsedate_to_datetime(plain).timestamp() - time.time()))
        except ValueError:
            pass
    found = next((wait for wait in waits if wait is not None), None)
    if found is None and status == 429:
        resets = [headers.get(b"x-ratelimit-reset-" + of, b"").decode("latin-1") for of in (b"requests", b"tokens")]
        found = max((wait for wait in map(seconds, resets) if wait is not None), default=None)
    return found if found is None or found < 1e7 else None


def seconds(text: str) -> float | None:
    """A number of seconds, or a duration such as 6m0s or 20ms."""
    text = text.strip()
    if re.fullmatch(r"\d+(\.\d+)?", text):
        return float(text)
    parts = re.findall(r"(\d+(?:\.\d+)?)(ms|[smhd])", text)
    if not parts or "".join(map("".join, parts)) != text:
        return None
    return sum(float(number) * _UNITS[unit] for number, unit in parts)
