"""Request targets: what is before and after the question mark."""

from __future__ import annotations

from functools import lru_cache
from urllib.parse import unquote_to_bytes

from penstock.http.problems import Fault


def target(url: bytes, method: str) -> tuple[str, bytes, bytes]:
    """The decoded path, the query and the path as it was sent. Raises Fault."""
    path, _, query = url.partition(b"?")
    if path[:1] != b"/" or b"#" in url:
        path = odd_target(path, query, method)
    return decoded(path) if b"%" in path else path.decode("ascii"), query, path


short_target = lru_cache(1024)(target)  # most requests name what others have named


def odd_target(path: bytes, query: bytes, method: str) -> bytes:
    """Absolute form (as sent to proxies) and `*`; anything else that is not a path is refused."""
    if path == b"*" and method == "OPTIONS":
        return path
    if method == "CONNECT":
        raise Fault(501, "This server is no proxy.")
    if b"#" in path or b"#" in query:
        raise Fault(400, "The request target has a fragment.")
    scheme, mark, rest = path.partition(b"://")
    if mark and scheme.lower() in (b"http", b"https"):
        slash = rest.find(b"/")
        return b"/" if slash < 0 else rest[slash:]
    raise Fault(400, "The request target is not a path.")


def decoded(path: bytes) -> str:
    try:
        text = unquote_to_bytes(path).decode()
    except UnicodeDecodeError:
        raise Fault(400, "The path is not UTF-8 once it is decoded.") from None
    if "\0" in text:
        raise Fault(400, "The path has a NUL character.")
    return text
