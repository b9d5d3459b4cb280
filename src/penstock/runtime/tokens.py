"""Bearer tokens: who may call, as which tenant, with what share and how often.

A token is `pst_<id>_<secret>`; the file keeps the SHA-256 of the whole. The secret has 256 random bits, so a plain hash
cannot be searched, and a slow one would only slow the server. The id finds the entry; the hash is compared in constant
time, also for ids that do not exist. The file is read again when it changes, within a second, without a restart.
"""

from __future__ import annotations

import contextlib
import hmac
import logging
import math
import os
import secrets
import tempfile
from collections.abc import Iterator
from hashlib import sha256
from pathlib import Path

import msgspec

from penstock.core.policy.limit import Rate, RateState
from penstock.errors import ConfigError, RateLimited
from penstock.runtime.quota import Allowance, Bucket, allowance

_PREFIX = "pst"
_LOOK = 1.0  # seconds between looks at the file
_NOBODY = sha256(b"").hexdigest()


class Tenant(msgspec.Struct, omit_defaults=True, forbid_unknown_fields=True):
    """What a tenant gets.

    `weight` in fair shares; `priority` is the most urgent that its calls may have; at most `per_second` calls, of which
    `burst` at once (default: a second's), and `tokens_per_minute` of language models, prompts and answers together.
    """

    weight: float = 1.0
    priority: int = 0
    per_second: float | None = None
    burst: int | None = None
    tokens_per_minute: float | None = None

    def rate(self) -> RateState | None:
        """The account that its calls are charged to; None if they are not counted."""
        if self.per_second is None:
            return None
        if not 0 < self.per_second < math.inf:
            raise ConfigError(f"calls a second must be a number greater than 0, not {self.per_second!r}")
        return Rate(self.per_second, burst=self.burst or max(1, int(self.per_second))).state()

    def bucket(self) -> Bucket | None:
        """The account of its tokens."""
        return None if self.tokens_per_minute is None else Bucket(self.tokens_per_minute)


class Token(msgspec.Struct, omit_defaults=True, forbid_unknown_fields=True):
    """One token. An operator may also read /metrics and /status, and name another tenant."""

    name: str
    tenant: str
    sha256: str
    operator: bool = False


class Book(msgspec.Struct, omit_defaults=True, forbid_unknown_fields=True):
    """The file: tenants by name, tokens by id."""

    tenants: dict[str, Tenant] = {}
    tokens: dict[str, Token] = {}


class Tokens:
    """The tokens of one file, as a server uses them. `weights` is for fair shares, and changes with the file."""

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path = Path(path)
        self.weights: dict[str, float] = {}
        self.accounts: dict[str, RateState | None] = {}
        self.buckets: dict[str, Bucket | None] = {}
        self.book = Book()
        self._stamp = (0, 0)
        self._looked = float("-inf")
        self._take(read(self.path))

    def find(self, given: str) -> Token | None:
        """The entry of a token; None if there is none."""
        kind, _, rest = given.partition("_")
        entry = self.book.tokens.get(rest.partition("_")[0])
        digest = sha256(given.encode("utf-8", "surrogateescape")).hexdigest()
        same = hmac.compare_digest(digest, _NOBODY if entry is None else entry.sha256)
        return entry if same and kind == _PREFIX else None

    def tenant(self, token: Token) -> Tenant:
        """What the token's tenant gets."""
        return self.book.tenants.get(token.tenant) or Tenant()

    def charge(self, tenant: str, now: float) -> None:
        """Count one call against the tenant's quota. Raises RateLimited."""
        account = self.accounts.get(tenant)
        if account is None:
            return
        at = account.ready_at(0, now)
        if at > now:
            rate = account.policy.per_second
            often = f"{rate:g} calls a second" if rate >= 1 else f"{60 * rate:g} calls a minute"
            raise RateLimited(f"tenant {tenant!r} may make {often}", retry_after=at - now)
        account.started(now)

    def admit(self, tenant: str, prompt: int, now: float) -> None:
        """Take the tokens of a prompt from the tenant's quota before its call is made. Raises RateLimited.

        `use` the answer's when they are known, or minus the prompt's if the call was refused after all.
        """
        bucket = self.buckets.get(tenant)
        if bucket is None:
            return
        wait = bucket.wait(prompt, now)
        if wait > 0:
            left = max(0, int(bucket.left(now)))
            raise RateLimited(
                f"tenant {tenant!r} may use {bucket.per_minute:g} tokens a minute; {left} are left, this prompt has {prompt}",
                retry_after=wait,
            )
        bucket.take(prompt, now)

    def use(self, tenant: str, tokens: int, now: float) -> None:
        """So many tokens more were used; the next prompt waits for what exceeds the quota."""
        bucket = self.buckets.get(tenant)
        if bucket is not None:
            bucket.take(tokens, now)

    def allowance(self, tenant: str, now: float) -> Allowance:
        """What is left of the tenant's quotas, for the headers `x-ratelimit-*`."""
        return allowance(self.accounts.get(tenant), self.buckets.get(tenant), now)

    def refresh(self, now: float) -> None:
        """Read the file again if it has changed. One that cannot be read is reported, and the last one stays in force."""
        if now < self._looked + _LOOK:
            return
        self._looked = now
        try:
            if self._stamp != _stamp(self.path):
                self._take(read(self.path))
        except (OSError, ConfigError) as error:
            if self._stamp != (0, 0):
                logging.getLogger("penstock").error("the tokens stay as they were: %s", error)
            self._stamp = (0, 0)

    def _take(self, book: Book) -> None:
        self._stamp = _stamp(self.path)
        old, self.book = self.book, book
        self.weights.clear()
        self.weights.update({name: tenant.weight for name, tenant in book.tenants.items()})
        for name, tenant in book.tenants.items():
            if name not in self.accounts or old.tenants.get(name) != tenant:  # else what it has used up stays used
                self.accounts[name], self.buckets[name] = tenant.rate(), tenant.bucket()
        for name in self.accounts.keys() - book.tenants.keys():
            del self.accounts[name], self.buckets[name]


def _stamp(path: Path) -> tuple[int, int]:
    found = path.stat()
    return found.st_mtime_ns, found.st_ino


# The file


def read(path: Path) -> Book:
    """The file's content. Raises ConfigError with what to do."""
    try:
        data = path.read_bytes()
    except FileNotFoundError:
        raise ConfigError(f"there is no file {path}; `penstock token add NAME --file {path}` makes one") from None
    except OSError as error:
        raise ConfigError(f"{path} cannot be read: {error.strerror}") from error
    try:
        book = msgspec.json.decode(data, type=Book)
        for token in book.tokens.values():
            if len(bytes.fromhex(token.sha256)) != 32:
                raise ValueError(f"the hash of {token.name!r} is not a SHA-256")
        for name, tenant in book.tenants.items():
            checked(name, tenant)
    except (ValueError, msgspec.MsgspecError) as error:
        raise ConfigError(f"{path} is no file of tokens: {error}") from error
    return book


def checked(name: str, tenant: Tenant) -> None:
    """Raise ConfigError for a tenant that cannot be."""
    if not 1 <= len(name) <= 128 or not name.isascii() or not name.isprintable() or " " in name:
        raise ConfigError(f"{name!r} cannot be a tenant's name: 1 to 128 visible ASCII characters")
    if not 0 < tenant.weight < float("inf"):
        raise ConfigError(f"tenant {name!r}: a weight is greater than 0, not {tenant.weight:g}")
    tenant.rate()
    tenant.bucket()


@contextlib.contextmanager
def changed(path: Path) -> Iterator[Book]:
    """The file's content (or none yet), to be changed; written whole or not at all, readable by its owner only."""
    book = read(path) if path.exists() else Book()
    yield book
    for name, tenant in book.tenants.items():
        checked(name, tenant)
    handle, temporary = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)  # made with mode 600
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(msgspec.json.format(msgspec.json.encode(book), indent=2) + b"\n")
            file.flush()
            os.fsync(handle)
        os.replace(temporary, path)
    except BaseException:
        os.unlink(temporary)
        raise


def issue(book: Book, name: str, tenant: str, operator: bool = False) -> str:
    """Add a token to the book; gives it, for the only time."""
    if any(token.name == name for token in book.tokens.values()):
        raise ConfigError(f"there is a token named {name!r} already; remove it first")
    identity = secrets.token_hex(6)
    token = f"{_PREFIX}_{identity}_{secrets.token_urlsafe(32)}"
    book.tenants.setdefault(tenant, Tenant())
    book.tokens[identity] = Token(name, tenant, sha256(token.encode()).hexdigest(), operator)
    return token


def revoke(book: Book, name: str) -> None:
    """Take the token of this name out, and its tenant with it if that has no other. Raises ConfigError."""
    for identity, token in list(book.tokens.items()):
        if token.name == name:
            del book.tokens[identity]
            if not any(other.tenant == token.tenant for other in book.tokens.values()):
                book.tenants.pop(token.tenant, None)
            return
    raise ConfigError(f"there is no token named {name!r}")
