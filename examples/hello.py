"""The smallest service: `penstock serve examples/hello.py:app`, then `penstock call hello name=Ada`."""

import penstock as ps


@ps.service
async def hello(name: str) -> str:
    """Greets by name."""
    return f"Hello, {name}!"


app = ps.App(hello)
