"""Every example of docs/http-api.md runs as it stands; the generated pages are not stale."""

from __future__ import annotations

import re
import subprocess
import sys

import pytest

from tests.gateway.serving import ROOT, Server, environment_of_tests

PAGE = (ROOT / "docs" / "http-api.md").read_text(encoding="utf-8")
EXAMPLES = re.findall(r"^```(bash|python)\n(.*?)^```", PAGE, re.MULTILINE | re.DOTALL)
ADDRESS = "http://127.0.0.1:8080"


@pytest.mark.parametrize("number", range(len(EXAMPLES)))
def test_an_example_runs(server: Server, number: int) -> None:
    kind, code = EXAMPLES[number]
    code = code.replace(ADDRESS, server.url)
    start = ["bash", "-euo", "pipefail", "-c"] if kind == "bash" else [sys.executable, "-c"]
    found = subprocess.run(
        [*start, code], cwd=ROOT, capture_output=True, text=True, timeout=60, check=False
    )
    assert found.returncode == 0, found.stderr
    assert '"error": {' not in found.stdout


def test_generated_pages_are_fresh() -> None:
    found = subprocess.run(
        [sys.executable, str(ROOT / "scripts" / "docs.py"), "--check"],
        env=environment_of_tests(),
        capture_output=True,
        text=True,
        check=False,
    )
    assert found.returncode == 0, found.stdout + found.stderr


def test_the_page_names_every_path_of_the_api(server: Server) -> None:
    for path in server.get("/openapi.json").json()["paths"]:
        head = "/".join(path.split("{")[0].rstrip("/").split("/")[:3])
        assert head in PAGE or head in {"/version"}, path


def test_the_dashboard_asks_only_for_metrics_that_exist(server: Server) -> None:
    dashboard = (ROOT / "deploy" / "grafana" / "visiongate.json").read_text(encoding="utf-8")
    wanted = set(re.findall(r"visiongate_[a-z_]+", dashboard))
    shown = set(re.findall(r"^(visiongate_[a-z_]+)", server.get("/metrics").text, re.MULTILINE))
    lazy = {"visiongate_requests_total", "visiongate_answers_total"}  # after the first request
    assert wanted <= shown | lazy
