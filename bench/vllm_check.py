"""A check of the vLLM engine against a real vLLM, which the tests cannot install: not a measurement.

    python bench/vllm_check.py /path/to/environment/with/vllm /path/to/model [env=NAME=VALUE ...] [engine argument=value ...]

1. Everything that tests/engines/fake_vllm has is in the real package too, with the same parameters, fields and bases.
2. With the real engine: requests alone and 48 at once give the same tokens; log-probabilities, stop tokens, a schema; refusals
   harm nobody; who leaves is aborted; a core that is killed ends its requests and is started again; nothing is left over.
"""

from __future__ import annotations

import asyncio
import functools
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import psutil

import penstock as ps
from penstock.engines.vllm import QUIET
from penstock.engines.vllm_engine import Engine
from penstock.errors import InvalidRequest, WorkerLost

FAKE = Path(__file__).parent.parent / "tests" / "engines" / "fake_vllm"
NAMES = """
vllm.engine.arg_utils AsyncEngineArgs
vllm.exceptions VLLMError VLLMClientError VLLMServerError VLLMValidationError GracefulHTTPError QueueOverflowError
vllm.inputs tokens_input
vllm.outputs CompletionOutput RequestOutput
vllm.logprobs Logprob
vllm.sampling_params RequestOutputKind SamplingParams StructuredOutputsParams
vllm.v1.engine.async_llm AsyncLLM
vllm.v1.engine.exceptions EngineDeadError EngineGenerateError
"""
DUMP = """
import importlib, inspect, json, sys
found = {}
for line in json.loads(sys.argv[1]):
    where, *names = line.split()
    module = importlib.import_module(where)
    for name in names:
        kind = getattr(module, name)
        entry = found[name] = {"bases": [base.__name__ for base in getattr(kind, "__mro__", ())]}
        entry["init"] = list(inspect.signature(kind).parameters) if kind.__init__ is not Exception.__init__ else []
        if name == "AsyncLLM":
            for method in ("from_engine_args", "generate", "abort"):
                entry[method] = list(inspect.signature(getattr(kind, method)).parameters)
            entry["properties"] = [p for p in ("errored", "dead_error") if isinstance(getattr(kind, p, None), property)]
            del entry["init"]
        if name == "RequestOutputKind":
            entry["init"] = [each.name for each in kind]
        if name == "RequestOutput":
            entry["init"] = [p for p in entry["init"] if p != "kwargs"]
print("\\nFOUND" + json.dumps(found))
"""


def dump(python: Path, path: str = "") -> dict[str, Any]:
    lines = [line for line in NAMES.split("\n") if line]
    command = [str(python / "bin" / "python"), "-c", DUMP, json.dumps(lines)]
    environment = {**os.environ, **QUIET, "PYTHONPATH": path}
    told = subprocess.run(command, env=environment, stdout=subprocess.PIPE, text=True, check=True).stdout
    (line,) = [line for line in told.split("\n") if line.startswith("FOUND")]
    return dict(json.loads(line.removeprefix("FOUND")))


def compare(python: Path) -> None:
    real, fake = dump(python), dump(python, str(FAKE))
    for name, entry in fake.items():
        for part, ours in entry.items():
            missing = [each for each in ours if each not in real[name][part]]
            assert not missing, f"{name}: the real one's {part} lacks {missing}"
    print(f"{len(fake)} classes of the stand-in agree with the real package")


async def check(python: Path, model: str, env: dict[str, str], arguments: dict[str, Any]) -> None:
    slots = 16
    arguments = {"max_model_len": 512, "max_num_seqs": slots, "disable_log_stats": True, **arguments}
    place = ps.Process(python=python, concurrency=slots, env={**QUIET, **env}, startup_timeout=1800.0, threads=1)
    service = ps.service(
        functools.partial(Engine, model, [], arguments), name="writer", on=place, start_timeout=600.0, progress_timeout=600.0
    )
    prompts = [list(range(5 + n, 25 + n)) for n in range(4)]

    async def write(prompt: list[int], most: int = 20, **more: Any) -> list[Any]:
        return [token async for token in service(prompt, {"max_tokens": most, "temperature": 0.0, **more}, [])]

    began = time.monotonic()
    async with ps.Runtime(service, grace=5.0) as runtime:
        print(f"up after {time.monotonic() - began:.0f} s")
        alone = [await write(prompt, ignore_eos=True) for prompt in prompts]
        began = time.monotonic()
        found = await asyncio.gather(*(write(prompts[n % 4], ignore_eos=True) for n in range(48)))
        rate = 48 * 20 / (time.monotonic() - began)
        assert all(len(each) == 20 for each in found)
        equal = sum(each == alone[n % 4] for n, each in enumerate(found))
        print(f"48 requests of 20 tokens, 16 at once: {rate:.0f} tokens/s; {equal} of 48 as when alone")
        ((token, own, top),) = await write(prompts[0], 1, logprobs=2)
        assert token == alone[0][0] and len(top) == 2 and top[0][1] == own >= top[1][1]
        assert await write(prompts[0], stop_ids=[alone[0][0]]) == [alone[0][0]]  # the token that ends an answer is in it
        print("of a schema:", await write(prompts[0], 8, schema={"type": "object"}))
        for prompt in ([1] * 600, [], [10**7]):
            try:
                await write(prompt)
            except InvalidRequest as error:
                print("refused:", str(error).split(".")[0])
            else:
                raise AssertionError(f"a prompt of {len(prompt)} tokens was taken")
        stream = service(prompts[0], {"max_tokens": 400, "ignore_eos": True}, []).__aiter__()
        for _ in range(3):
            await anext(stream)
        await stream.aclose()
        first = psutil.Process().children(recursive=True)
        calls = [asyncio.ensure_future(write(prompts[0], 450, ignore_eos=True)) for _ in range(4)]
        await asyncio.sleep(0.5)
        for child in first:
            if "EngineCore" in child.name():
                child.send_signal(signal.SIGKILL)
        ends = await asyncio.gather(*calls, return_exceptions=True)
        assert all(isinstance(end, WorkerLost) for end in ends), ends
        assert await write(prompts[0], ignore_eos=True) == alone[0] and runtime.restarts == 1
        print("a killed core: four requests ended with WorkerLost, the next one was served by another engine")
        last = psutil.Process().children(recursive=True)
    left = [child for child in [*first, *last] if child.is_running() and child.status() != psutil.STATUS_ZOMBIE]
    assert not left, left
    print("no process is left")


def literal(text: str) -> Any:
    """A number, true or false, or what is written there."""
    try:
        return json.loads(text)
    except ValueError:
        return text


def main() -> None:
    python, model, *rest = sys.argv[1:]
    env = dict(word[4:].split("=", 1) for word in rest if word.startswith("env="))
    given = (word.split("=", 1) for word in rest if not word.startswith("env="))
    arguments = {key: literal(value) for key, value in given}
    compare(Path(python))
    asyncio.run(check(Path(python), model, env, arguments))


if __name__ == "__main__":
    main()
