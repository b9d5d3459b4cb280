"""The page at `/chat`: plain JavaScript, served as it is, allowed to talk to this server only."""

from __future__ import annotations

import base64
import re
from functools import cache
from hashlib import sha256
from pathlib import Path

from penstock.http.message import Response

PAGE = "/chat"


@cache
def page() -> Response:
    """The page. It runs no script but its own, whatever a model or a user writes."""
    body = (Path(__file__).with_name("page.html")).read_bytes()
    allowed = []
    for kind in ("script", "style"):
        found = re.search(rb"<%b>(.*?)</%b>" % (kind.encode(), kind.encode()), body, re.S)
        assert found is not None
        allowed.append(f"{kind}-src 'sha256-{base64.b64encode(sha256(found[1]).digest()).decode()}'")
    policy = f"default-src 'none'; {'; '.join(allowed)}; connect-src 'self'; base-uri 'none'; frame-ancestors 'none'"
    head = b"content-type: text/html; charset=utf-8\r\ncontent-security-policy: %b\r\ncache-control: no-cache\r\n"
    return Response(200, head % policy.encode(), body)
