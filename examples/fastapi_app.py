"""Services called from FastAPI's handlers, and the app mounted beside them: `uvicorn examples.fastapi_app:web`."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from fastapi import FastAPI

import penstock as ps


@ps.service(batch=ps.Batch(max_size=8, max_wait=0.002))
def square(xs: list[int]) -> list[int]:
    return [x * x for x in xs]


@asynccontextmanager
async def lifespan(web: FastAPI) -> AsyncIterator[None]:
    async with ps.Runtime(square):
        yield


web = FastAPI(lifespan=lifespan)


@web.get("/square/{x}")
async def get_square(x: int) -> int:
    return await square(x)
