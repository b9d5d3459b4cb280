"""penstock as shipped: ordinary services with all defaults on, under its own server ("") or mounted under uvicorn ("asgi")."""

PEER = {
    "name": "penstock",
    "packages": ["penstock"],
    "also": ["uvloop", "httptools", "msgspec"],
    "path": {"A": "/noop", "B": "/model", "C": "/stream", "D": "/model"},
    "variants": {"A": ["", "asgi"], "B": [""], "C": [""], "D": [""]},
    "layouts": ["cpu0", "free"],
}

import asyncio  # noqa: E402
import os  # noqa: E402
from collections.abc import AsyncIterator  # noqa: E402

from workloads import BATCH, EVENTS, GAP, BatchModel, args, noop, workload  # noqa: E402

import penstock as ps  # noqa: E402


@ps.service(name="noop")
async def serve_noop(x: list[float]) -> dict[str, float]:
    return {"y": noop(x)}


@ps.service
async def stream(x: list[float]) -> AsyncIterator[dict[str, int]]:
    for i in range(EVENTS):
        if i:
            await asyncio.sleep(GAP)
        yield {"i": i}


class Model:
    def __init__(self) -> None:
        self.model = BatchModel(workload())

    def __call__(self, xs: list[list[float]]) -> list[dict[str, float]]:
        return [{"y": y} for y in self.model(xs)]


def services() -> list[ps.Service]:
    if workload() == "A":
        return [serve_noop]
    if workload() == "C":
        return [stream]
    knobs = BATCH[workload()]
    return [ps.service(Model, name="model", batch=ps.Batch(max_size=knobs["size"], max_wait=knobs["wait"]))]


app = ps.App(*services()) if "PEER_WORKLOAD" in os.environ else None

if __name__ == "__main__":
    a = args()
    if a.variant == "asgi":
        from workloads import exec_cli

        os.environ["PYTHONPATH"] = os.path.dirname(os.path.abspath(__file__)) + os.pathsep + os.environ.get("PYTHONPATH", "")
        exec_cli(
            "uvicorn", "peer_penstock:app", "--port", a.port, "--no-access-log", "--log-level", "warning", "--backlog", 4096
        )
    import sys

    os.environ["PYTHONPATH"] = os.path.dirname(os.path.abspath(__file__)) + os.pathsep + os.environ.get("PYTHONPATH", "")
    os.execv(sys.executable, [sys.executable, "-m", "penstock", "serve", "peer_penstock:app", "--port", str(a.port)])
