"""An app whose services run elsewhere; PENSTOCK_TEST_REMOTES has the URLs."""

from __future__ import annotations

import os

import penstock as ps

urls = os.environ["PENSTOCK_TEST_REMOTES"].split()


@ps.service(on=ps.Remote(urls, connections=4), safe=True)
def number() -> int: ...


app = ps.App(number)
