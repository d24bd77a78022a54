"""`pro` on a machine without a GPU: it answers on the CPU and says `degraded` everywhere."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.gateway.serving import Server, example, question, serve, wait_for
from visiongate.gateway.launch import count_gpus

WEIGHTS = Path(__file__).parents[2] / "src/visiongate/mini/weights"

pytestmark = pytest.mark.skipif(count_gpus() > 0, reason="this machine has a GPU")


@pytest.fixture(scope="module")
def fallen(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    with serve(tmp_path_factory.mktemp("pro"), "--preset", "pro", "--model", str(WEIGHTS)) as found:
        yield found


def test_every_answer_carries_the_degraded_header(fallen: Server) -> None:
    answer = fallen.post("/v1/chat/completions", question(example(), "What is the total?"))
    assert answer.json()["choices"][0]["message"]["content"] == "$20.47"
    for response in (answer, fallen.get("/health"), fallen.get("/"), fallen.get("/nothing")):
        assert response.headers["X-VisionGate-State"] == "degraded"


def test_status_details_and_log_name_the_reason(fallen: Server) -> None:
    assert fallen.get("/health").json() == {"status": "healthy"}  # it does answer
    for path in ("/api/status", "/health/details"):
        found = fallen.get(path).json()
        assert found["state"] == "degraded"
        assert "no NVIDIA GPU is visible" in found["reason"]
        assert found["device"] == "cpu"
    assert any("running on the CPU, slowly" in line for line in fallen.lines)


def test_a_healthy_service_has_no_such_header(server: Server) -> None:
    assert "X-VisionGate-State" not in server.get("/health").headers


def test_without_the_fallback_it_does_not_start(tmp_path: Path) -> None:
    with serve(
        tmp_path,
        *("--preset", "pro", "--model", str(WEIGHTS)),
        waits=False,
        VISIONGATE_CPU_FALLBACK="false",
    ) as refused:
        wait_for(lambda: "no NVIDIA GPU" in refused.get("/api/status").json()["reason"])
        answer = refused.post("/v1/chat/completions", question(example(), "What is the total?"))
        assert answer.status_code == 503
