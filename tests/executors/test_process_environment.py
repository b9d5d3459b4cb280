"""Where children run: other interpreters, devices, cores, variables; and what they print."""

from __future__ import annotations

import asyncio
import importlib
import os
import subprocess
import sys
import venv
from pathlib import Path
from typing import Any

import pytest

import penstock as ps
from penstock.errors import ConfigError, InvalidRequest, ServiceFailed, WorkerLost
from penstock.executors.process_launch import Launcher, root, share, visible

from . import bodies


def launcher(**options: Any) -> Launcher:
    return Launcher(bodies.echo.body, ps.Process(**options), 3, 64, 1.0)


def test_another_environment_needs_nothing_of_ours(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    venv.EnvBuilder(with_pip=False, symlinks=True).create(tmp_path / "other")
    monkeypatch.setenv("PENSTOCK_TEST_PYTHON", str(tmp_path / "other"))
    monkeypatch.delitem(sys.modules, "executors.elsewhere", raising=False)
    elsewhere = importlib.import_module("executors.elsewhere")

    async def main() -> None:
        async with ps.Runtime(elsewhere.app):
            found = await elsewhere.about("hello")
            assert found["prefix"] == str(tmp_path / "other") and found["word"] == "hello"
            assert not found["penstock"]
            assert not [path for path in found["path"] if "site-packages" in path and not path.startswith(str(tmp_path))]
            assert await asyncio.gather(*(elsewhere.shouts(word) for word in "abcdef")) == list("ABCDEF")
            assert [n async for n in elsewhere.counter(3)] == [5, 6, 7]
            assert await elsewhere.asks("why") == "WHY!"
            assert [word async for word in elsewhere.repeats(["a", "b"])] == ["a", "b"]
            with pytest.raises(InvalidRequest, match="a wrong word"):
                await elsewhere.about("wrong")
            with pytest.raises(ServiceFailed, match="cannot be read over there 3"):
                await elsewhere.about("own")

    asyncio.run(main())


def test_a_script_may_be_its_own_module(tmp_path: Path) -> None:
    """Bodies in `__main__`, here and in another environment."""
    venv.EnvBuilder(with_pip=False, symlinks=True).create(tmp_path / "other")
    script = tmp_path / "script.py"
    script.write_text(
        "import asyncio, sys\n"
        "import penstock as ps\n"
        "@ps.service(on=ps.Process(1))\n"
        "def here(x): return x + 1\n"
        f"@ps.service(on=ps.Process(1, python={str(tmp_path / 'other')!r}))\n"
        "def there(x): return sys.prefix\n"
        "async def main():\n"
        "    async with ps.Runtime(here, there):\n"
        "        print(await here(1), await there(1))\n"
        "if __name__ == '__main__':\n"
        "    asyncio.run(main())\n"
    )
    done = subprocess.run([sys.executable, script], capture_output=True, text=True, timeout=60, check=True)
    assert done.stdout.split() == ["2", str(tmp_path / "other")]


def test_an_interpreter_that_is_not_there_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="no such interpreter"):
        launcher(python=tmp_path / "python")
    with pytest.raises(ConfigError, match="no virtual environment"):
        launcher(python=tmp_path)


def test_devices_go_round_and_a_child_sees_its_own_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    made = launcher(replicas=3, device=["cuda:0", "cuda:1"], env={"A": "b"})
    assert [made.environment(n)["CUDA_VISIBLE_DEVICES"] for n in range(3)] == ["0", "1", "0"]
    assert made.environment(1)["PENSTOCK_DEVICE"] == "cuda:0"
    assert made.environment(1)["A"] == "b" and made.environment(1)["OMP_NUM_THREADS"] == "3"
    assert launcher(device="mps").environment(0)["PENSTOCK_DEVICE"] == "mps"
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "GPU-aa, 5")
    assert [visible(n) for n in (0, 1)] == ["GPU-aa", "5"]
    with pytest.raises(ConfigError, match="only 2 devices"):
        visible(2)
    with pytest.raises(ConfigError, match="device"):
        ps.Process(device="GPU 1")


def test_cores_are_shared_out() -> None:
    assert [share((0, 1, 2, 3, 4), n, 2) for n in range(2)] == [(0, 2, 4), (1, 3)]
    assert [share((6, 7), n, 3) for n in range(3)] == [(6,), (7,), (6,)]


def test_the_directory_of_a_module() -> None:
    assert root("executors.bodies") == str(Path(__file__).parent.parent)
    assert root("penstock.executors.base") == str(Path(ps.__file__).parent.parent)


def test_variables_and_cores_are_there_before_the_body_is_imported() -> None:
    async def main() -> None:
        async with ps.Runtime(bodies.placed):
            found = await bodies.placed("x")
            assert found["seen"] == "at import"
            assert found["device"] == "cpu"
            assert found["threads"] == "2"
            assert found["cores"] == [min(os.sched_getaffinity(0))]

    asyncio.run(main())


def test_what_children_print_comes_out_here_with_their_name(capfd: pytest.CaptureFixture[str]) -> None:
    async def main() -> None:
        async with ps.Runtime(bodies.talkative):
            await bodies.talkative("one\ntwo\r\nthree: ü")
            await bodies.talkative("last words")  # kills it
            await bodies.talkative("again")

    with pytest.raises(WorkerLost):
        asyncio.run(main())
    out, err = capfd.readouterr()
    assert [line for line in out.splitlines() if "|" in line] == [
        "talkative[0] | one",
        "talkative[0] | two",
        "talkative[0] | three: ü",
        "talkative[0] | last words",
    ]
    assert "talkative[0] | on stderr" in err
    assert "Fatal Python error: Aborted" in err


def test_a_program_without_a_main_guard_is_told_what_to_do(tmp_path: Path) -> None:
    program = tmp_path / "program.py"
    program.write_text(
        "import penstock as ps\n"
        "@ps.service(on=ps.Process())\n"
        "def f(x: int) -> int:\n"
        "    return x\n"
        "with ps.Runtime(f):\n"
        "    pass\n"
    )
    done = subprocess.run([sys.executable, program], capture_output=True, text=True, timeout=60)
    assert done.returncode == 1
    assert "ConfigError: a child process imports this program" in done.stderr
    assert 'if __name__ == "__main__":' in done.stderr
