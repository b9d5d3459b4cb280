"""A gateway: one service that runs on several servers, and a body here that uses it.

penstock serve batched:app --port 8001 & penstock serve batched:app --port 8002 &
penstock serve remotes:app
penstock call nearest query="a fast river" texts='["a quick stream", "a slow lake"]'
"""

import os

import penstock as ps

URLS = os.environ.get("EMBED_URLS", "http://127.0.0.1:8001 http://127.0.0.1:8002").split()


@ps.service(on=ps.Remote(URLS, connections=16), safe=True)  # safe: a call that failed is run again on the other one
def embed(text: str) -> list[float]: ...


@ps.service(within=5.0)
async def nearest(query: str, texts: list[str]) -> str:
    wanted, *vectors = await ps.join(embed(query), *(embed(text) for text in texts))
    distances = [sum((a - b) ** 2 for a, b in zip(wanted, vector, strict=True)) for vector in vectors]
    return texts[distances.index(min(distances))]


app = ps.App(embed, nearest)
