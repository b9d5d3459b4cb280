"""vLLM's engine in a child process of an interpreter that has no penstock, with a small package in vLLM's place.

What that imitates is in `fake_vllm/vllm/__init__.py`; the child, its protocol and its death are real.
"""

from __future__ import annotations

import asyncio
import functools
import os
import signal
import subprocess
import sys
import time
import venv
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import httpx
import pytest
from served import served
from speaking import Bytes

import penstock as ps
from penstock.core.check import check, idle
from penstock.engines.vllm import FEATURES, chat
from penstock.engines.vllm_engine import Engine, items, sampling_params
from penstock.errors import ConfigError, InvalidRequest, Overloaded, ServiceError, WorkerLost
from penstock.http.serve import serving
from penstock.models import ChatModel

FAKE = Path(__file__).parent / "fake_vllm"
STOP = 50


@pytest.fixture(scope="module")
def elsewhere(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A virtual environment that has this vLLM and nothing else."""
    folder = tmp_path_factory.mktemp("vllm") / "env"
    venv.EnvBuilder(with_pip=False, symlinks=True).create(folder)
    (site,) = folder.glob("lib/python3*/site-packages")
    (site / "vllm.pth").write_text(f"{FAKE}\n")
    without = subprocess.run([folder / "bin" / "python", "-I", "-c", "import vllm, penstock"], capture_output=True, text=True)
    assert "No module named 'penstock'" in without.stderr
    return folder


def engine(python: Path, slots: int = 16, on: dict[str, Any] | None = None, **arguments: Any) -> Any:
    arguments = {"max_model_len": 40, "max_num_seqs": slots, "disable_log_stats": True, **arguments}
    place = ps.Process(python=python, concurrency=slots, **{"max_restarts": 1000, **(on or {})})
    return ps.service(functools.partial(Engine, "tiny", [STOP], arguments), name="writer", on=place)


def run(body: Callable[[ps.Runtime], Awaitable[None]], service: Any) -> None:
    async def main() -> None:
        async with ps.Runtime(service) as runtime:
            async with asyncio.timeout(60):
                await body(runtime)
                while runtime.busy():
                    await asyncio.sleep(0.001)
            check(runtime.scheduler, runtime.clock())
            idle(runtime.scheduler)

    asyncio.run(main())


def runs(pid: int) -> bool:
    """There is such a process, and not only its record, for which nobody has asked."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


async def written(service: Any, first: int, most: int = 5, **sampling: Any) -> list[Any]:
    return [token async for token in service([first], {"max_tokens": most, **sampling}, [])]


def test_requests_run_beside_each_other_and_stream_their_tokens(elsewhere: Path) -> None:
    service = engine(elsewhere)

    async def body(runtime: ps.Runtime) -> None:
        found = await asyncio.gather(*(written(service, n % 40, 9) for n in range(64)))
        assert found == [[n % 40 + 1 + i for i in range(9)] for n in range(64)]
        running, most, aborted = await written(service, 90)
        assert (running, most, aborted) == (1, 16, 0)
        assert await written(service, 45, 30) == [46, 47, 48, 49, STOP]  # which it gives too
        assert await written(service, 45, 7, ignore_eos=True) == [46, 47, 48, 49, 50, 51, 52]
        assert await written(service, 45, 7, stop_ids=[48]) == [46, 47, 48]

    run(body, service)


def test_log_probabilities(elsewhere: Path) -> None:
    service = engine(elsewhere)

    async def body(runtime: ps.Runtime) -> None:
        assert await written(service, 5, 2, logprobs=0) == [(6, -0.5, ()), (7, -0.5, ())]
        assert await written(service, 5, 1, logprobs=2) == [(6, -0.5, ((6, -0.5), (7, -1.0)))]

    run(body, service)


def test_who_leaves_aborts_the_request(elsewhere: Path) -> None:
    service = engine(elsewhere)

    async def body(runtime: ps.Runtime) -> None:
        streams = [service([1], {"max_tokens": 10**9}, []).__aiter__() for _ in range(8)]
        for stream in streams:
            assert await anext(stream) == 2
            await stream.aclose()
        silent = [asyncio.ensure_future(written(service, 94)) for _ in range(4)]  # before the first token
        while (await written(service, 90))[0] < 5:
            pass
        for call in silent:
            call.cancel()
        while (told := await written(service, 90))[0] > 1:
            pass
        assert told[2] == 12

    run(body, service)


def test_what_a_request_has_wrong_is_its_own_error_and_harms_nobody(elsewhere: Path) -> None:
    service = engine(elsewhere)

    async def body(runtime: ps.Runtime) -> None:
        assert len(await written(service, 1, 3, top_p=0.0)) == 3  # as OpenAI has it
        other = asyncio.ensure_future(written(service, 1, 40))
        for prompt, sampling, said in (
            ([1] * 41, {}, "maximum context length is 40 tokens"),
            ([], {}, "at least one token"),
            ([1, 100], {}, "each of 0 to 99"),  # which would kill the engine
            ([-1], {}, "each of 0 to 99"),
            ([1], {"top_p": 2.0}, "top_p must be in"),
        ):
            with pytest.raises(InvalidRequest, match=said):
                await anext(service(prompt, {"max_tokens": 3, **sampling}, []).__aiter__())
        with pytest.raises(InvalidRequest, match="without images"):
            await anext(service([1], {"max_tokens": 3}, [b"x"]).__aiter__())
        with pytest.raises(Overloaded, match="currently busy"):
            await written(service, 95)
        with pytest.raises(ServiceError, match="ended the request itself: abort"):
            await written(service, 91)
        with pytest.raises(ServiceError, match="EngineGenerateError"):
            await written(service, 92)
        assert len(await other) == 40 and runtime.restarts == 0

    run(body, service)


@pytest.mark.parametrize("busy", [True, False])
def test_an_engine_that_dies_ends_its_requests_and_another_is_started(elsewhere: Path, busy: bool, capfd: Any) -> None:
    service = engine(elsewhere)

    async def body(runtime: ps.Runtime) -> None:
        child, core = await written(service, 93)
        calls = [asyncio.ensure_future(written(service, 1, 10**9)) for _ in range(8 if busy else 0)]
        while (await written(service, 90))[0] < len(calls) + 1:
            pass
        os.kill(core, signal.SIGKILL)
        for end in await asyncio.gather(*calls, return_exceptions=True):
            assert isinstance(end, WorkerLost)
        while runtime.restarts == 0:  # also when nobody asks
            await asyncio.sleep(0.005)
        again = await written(service, 93)
        assert again[0] != child and again[1] != core and runtime.restarts == 1

    run(body, service)
    assert "vLLM's engine is dead: EngineCore encountered an issue" in capfd.readouterr().err


def test_what_the_child_has_started_ends_with_it(elsewhere: Path) -> None:
    service = engine(elsewhere)
    cores: list[int] = []

    async def body(runtime: ps.Runtime) -> None:
        child, core = await written(service, 93)
        cores.append(core)
        os.kill(child, signal.SIGKILL)
        while runtime.restarts == 0:
            await asyncio.sleep(0.005)
        cores.append((await written(service, 93))[1])

    run(body, service)
    while any(runs(core) for core in cores):
        time.sleep(0.005)


def test_an_ordinary_end_is_no_death(elsewhere: Path, capfd: Any) -> None:
    service = engine(elsewhere)

    async def body(runtime: ps.Runtime) -> None:
        assert await written(service, 1) == [2, 3, 4, 5, 6]

    run(body, service)
    assert "dead" not in capfd.readouterr().err


def test_an_engine_that_does_not_start_says_why(elsewhere: Path, tmp_path: Path) -> None:
    with pytest.raises(Exception, match="Engine core initialization failed"):
        run(lambda runtime: asyncio.sleep(0), engine(elsewhere, dtype="broken"))
    with pytest.raises(TypeError, match="no_such_argument"):
        run(lambda runtime: asyncio.sleep(0), engine(elsewhere, no_such_argument=1))
    venv.EnvBuilder(with_pip=False, symlinks=True).create(tmp_path / "bare")
    with pytest.raises(ModuleNotFoundError, match="vllm"):
        run(lambda runtime: asyncio.sleep(0), engine(tmp_path / "bare"))
    with pytest.raises(ConfigError, match="no such interpreter"):
        run(lambda runtime: asyncio.sleep(0), engine(tmp_path / "nothing"))


def test_sampling_becomes_vllms(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(FAKE))
    for name in [name for name in sys.modules if name.partition(".")[0] == "vllm"]:
        monkeypatch.delitem(sys.modules, name)
    given: dict[str, Any] = {
        "max_tokens": 7,
        "temperature": 0.5,
        "top_p": 0.9,
        "top_k": 20,
        "min_p": 0.1,
        "presence_penalty": 0.1,
        "frequency_penalty": 0.2,
        "repetition_penalty": 1.3,
        "logit_bias": {5: -100.0},
        "seed": 4,
        "logprobs": 2,
        "ignore_eos": False,
    }
    found = sampling_params({**given, "stop_ids": [9], "schema": {"type": "object"}}, [2])
    assert {key: getattr(found, key) for key in given} == given
    assert found.stop_token_ids == [2, 9] and found.output_kind.name == "DELTA" and not found.detokenize
    assert found.structured_outputs.json == {"type": "object"}
    assert sampling_params({"max_tokens": 1, "schema": {}}, []).structured_outputs.json_object is True
    assert sampling_params({"max_tokens": 1, "ignore_eos": True}, [2]).stop_token_ids == []
    for name in [name for name in sys.modules if name.partition(".")[0] == "vllm"]:
        monkeypatch.delitem(sys.modules, name)


def test_merged_outputs_are_told_apart() -> None:
    class Output:
        token_ids = (3, 4)
        logprobs: Any = None

    assert items(Output(), None) == [3, 4]


def test_it_is_served(elsewhere: Path) -> None:
    model = ChatModel(
        name="m", generate=engine(elsewhere), tokenizer=Bytes(), context=40, stops=frozenset({STOP}), features=FEATURES
    )

    async def main() -> None:
        async with serving(ps.App(models=[model], log=False)) as server, httpx.AsyncClient(timeout=20) as http:
            url = f"http://127.0.0.1:{server.port}/v1/completions"
            body = {"model": "m", "prompt": [32], "max_tokens": 30, "logprobs": 1}
            told = (await http.post(url, json=body)).json()
            assert (
                told["choices"][0]["text"] == bytes(range(33, STOP)).decode() and told["choices"][0]["finish_reason"] == "stop"
            )
            assert told["choices"][0]["logprobs"]["token_logprobs"] == [-0.5] * (STOP - 33)
            refused = await http.post(url, json={"model": "m", "prompt": [99, 257]})
            assert refused.status_code == 400 and "each of 0 to 99" in refused.json()["error"]["message"]

    asyncio.run(main())


def test_a_folder_is_served_with_its_own_tokenizer_and_template(elsewhere: Path) -> None:
    tiny_models = pytest.importorskip("tiny_models", reason="needs torch and transformers, to make a model")
    folder = tiny_models.qwen3()
    model = chat(folder, name="m", context=64, slots=4, on=ps.Process(python=elsewhere), engine={"seed": 3})
    assert (model.context, model.generate.options.on.concurrency) == (64, 4) and "json" in model.features
    with pytest.raises(ConfigError, match="context=100000"):
        chat(folder, context=100_000)

    async def main() -> None:
        async with serving(ps.App(models=[model], log=False)) as server, httpx.AsyncClient(timeout=20) as http:
            url = f"http://127.0.0.1:{server.port}/v1/chat/completions"
            body: dict[str, Any] = {
                "model": "m",
                "messages": [{"role": "user", "content": "hi"}],
                "max_tokens": 5,
                "ignore_eos": True,
            }
            told = (await http.post(url, json=body)).json()
            first = model.tokenizer.chat(body["messages"])[0]
            expected = model.tokenizer.decode([first + 1 + n for n in range(5)])
            assert told["choices"][0]["message"]["content"] == expected and told["usage"]["completion_tokens"] == 5
            refused = await http.post(url, json={**body, "max_tokens": 64})
            assert refused.status_code == 400 and "context of 64 tokens" in refused.json()["error"]["message"]

    asyncio.run(main())


def test_it_is_served_from_the_command_line(elsewhere: Path) -> None:
    tiny_models = pytest.importorskip("tiny_models", reason="needs torch and transformers, to make a model")
    where = ("--vllm-python", str(elsewhere), "--ttft", "20")
    with served(f"--vllm=m={tiny_models.qwen3()}", *where) as (child, url):
        body = {"model": "m", "prompt": [3], "max_tokens": 3, "logprobs": 0, "temperature": 0}
        told = httpx.post(f"{url}/v1/completions", json=body, timeout=20).json()
        assert told["choices"][0]["logprobs"]["token_logprobs"] == [-0.5] * 3
        assert "process x1, 128 calls at once in each, first item within 20 s" in child.said


def test_a_python_and_a_place_are_one_too_many(tmp_path: Path) -> None:
    tiny_models = pytest.importorskip("tiny_models", reason="needs torch and transformers, to make a model")
    with pytest.raises(ConfigError, match=r"on=ps\.Process\(python="):
        chat(tiny_models.qwen3(), python=tmp_path, on=ps.Process())
