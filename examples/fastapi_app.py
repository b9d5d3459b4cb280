"""Services called from FastAPI's handlers, and the app mounted beside them: `uvicorn examples.fastapi_app:web`."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from fastapi import FastAPI

import penstock as ps


@ps.service(batch=ps.Batch(max_size=8, max_wait=0.002))
def square(xs: list[int]) -> list[int]:
    return [x * x for x in xs]


models = ps.App(square)


@asynccontextmanager
async def lifespan(web: FastAPI) -> AsyncIterator[None]:
    async with ps.Runtime(models):  # loads before the first request, and drains at the end
        yield


web = FastAPI(lifespan=lifespan)
web.mount("/models", models)  # POST /models/square, /models/metrics, /models/openapi.json


@web.get("/square/{x}")
async def get_square(x: int) -> int:
    return await square(x)
