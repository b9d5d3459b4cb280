"""What /openapi.json says against what the server does: schemathesis on a real socket."""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
import urllib.request
from pathlib import Path

import pytest
from contract_app import app
from served import environment, served

HERE = Path(__file__).parent


def test_schemathesis_finds_nothing(tmp_path: Path) -> None:
    """Valid and invalid requests to every operation: statuses, media types, bodies and headers are as documented."""
    if importlib.util.find_spec("schemathesis") is None:
        pytest.skip("schemathesis is not installed (make test installs it)")
    with served(f"{HERE / 'contract_app.py'}:app") as (_, url):
        with urllib.request.urlopen(f"{url}/openapi.json", timeout=10) as response:
            document = json.load(response)
        assert set(document["paths"]) == {f"/{name}" for name in app.services}
        report = tmp_path / "report.ndjson"
        config, place = str(HERE / "schemathesis.toml"), f"--report-ndjson-path={report}"
        command = [sys.executable, "-m", "schemathesis.cli", "--config-file", config, "run", f"{url}/openapi.json", place]
        ours = environment()
        ours["PYTHONPATH"] = os.pathsep.join([str(HERE), ours["PYTHONPATH"]])
        done = subprocess.run(command, env=ours, cwd=tmp_path, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stdout + done.stderr
    operations = sum(len(methods) for methods in document["paths"].values())
    assert f"{operations} selected / {operations} total" in done.stdout
    cases = next(line for line in done.stdout.splitlines() if " generated" in line)
    assert int(cases.split()[0]) >= 50 * operations, cases


CHECKS = "not_a_server_error,status_code_conformance,content_type_conformance,response_schema_conformance"


def test_schemathesis_finds_nothing_in_the_model_endpoints(tmp_path: Path) -> None:
    """Whatever is sent to them: no server error, and answers as documented. What they refuse, no schema can say in full."""
    if importlib.util.find_spec("schemathesis") is None:
        pytest.skip("schemathesis is not installed (make test installs it)")
    with served("speaking_app:app", cwd=HERE.parent) as (_, url):
        command = [sys.executable, "-m", "schemathesis.cli", "run", f"{url}/openapi.json", "--seed", "1"]
        command += ["--phases", "coverage", "--checks", CHECKS]
        done = subprocess.run(command, env=environment(), cwd=tmp_path, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "11 selected / 11 total" in done.stdout and " generated" in done.stdout
