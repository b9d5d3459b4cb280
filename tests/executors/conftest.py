from __future__ import annotations

import os

import pytest

from penstock.executors.child import arena


@pytest.fixture
def pair():
    fd = arena.create(1 << 20)
    yield arena.Outbox(fd), arena.Inbox(fd)
    os.close(fd)
