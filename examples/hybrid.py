"""The hybrid processor from a synchronous program: threads for functions, the loop for coroutines, futures for both."""

import asyncio
import time
from concurrent.futures import Future

import penstock as ps


@ps.service(on=ps.Thread(4))
def vision(image: str) -> str:
    time.sleep(0.03)  # releases the GIL, as a kernel would
    return f"features of {image}"


@ps.service
async def language(text: str) -> str:
    await asyncio.sleep(0.02)
    return f"goal of {text}"


@ps.service
async def act(image: str, text: str) -> str:
    """Vision and language side by side."""
    seen, goal = await ps.join(vision(image), language(text))
    return f"{seen}, {goal}"


def main() -> list[str]:
    results: list[str] = []

    def done(future: "Future[str]") -> None:
        if future.exception() is None:
            results.append(future.result())

    with ps.Runtime(vision, language, act):
        futures = []
        for n in range(6):
            with ps.budget(priority=n % 2, within=10.0):
                future = act.submit(f"image {n}", "grasp the red cube")
            future.add_done_callback(done)
            futures.append(future)
        answers = [future.result() for future in futures]
        answers += [future.result() for future in vision.map(f"frame {n}" for n in range(8))]
    assert len(results) == 6
    return answers


if __name__ == "__main__":
    for line in main():
        print(line)
