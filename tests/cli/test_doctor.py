"""The doctor: each verdict from hand-set facts, the memory table, sight through the real engine."""

from __future__ import annotations

import asyncio
import dataclasses
import json
import os
import socket
import subprocess
import sys
import types
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.gateway.serving import ROOT, START, Server, serve
from visiongate.cli.checks import Level, Verdict, machine
from visiongate.cli.checks.cards import CardSpeed, measure_cards
from visiongate.cli.checks.facts import Facts, Gpu, Place, measure, port_owner
from visiongate.cli.checks.sight import Known, check_sight, draw_all, overlap, read_box
from visiongate.cli.doctor import (
    card_checks,
    judge_details,
    judge_hashes,
    judge_health,
    machine_checks,
)
from visiongate.engine.budget import (
    GPU_PRECISIONS,
    PRECISIONS,
    Budget,
    budget,
    gpu_budget,
    num_linear_weights,
    num_parameters,
    published,
)
from visiongate.gateway.settings import load
from visiongate.model.config import ModelConfig
from visiongate.model.qwen3vl import Qwen3VL

WEIGHTS = ROOT / "src/visiongate/mini/weights"
GOOD = Facts(
    system="Linux",
    release="6.1",
    distribution="Ubuntu 22.04.5 LTS",
    glibc="2.35",
    python=(3, 11, 9),
    machine="x86_64",
    features=("avx2", "avx512f"),
    num_cores=8,
    cpu_quota=3.0,
    memory_limit_bytes=12 * 10**9,
    memory_total_bytes=64 * 10**9,
    memory_used_bytes=10**9,
    shm_bytes=64 * 1024 * 1024,
    places=(),
    host="127.0.0.1",
    port=8080,
    port_owner="",
    gpus=(Gpu("NVIDIA A10", 24 * 10**9, "550.54.15", 8.6),),
    has_driver=True,
    docker="28.2.2",
    container_toolkit="1.17.0",
    is_container=False,
    libraries={"torch": "2.13.0", "pillow": "12.0.0"},
    torch_cuda="12.8",
    has_kernels=True,
    encoding="UTF-8",
    has_keys=False,
    outgoing=(),
)


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    with serve(tmp_path_factory.mktemp("server")) as found:
        yield found


def with_facts(**changes: Any) -> Facts:
    return dataclasses.replace(GOOD, **changes)


def judged(facts: Facts, preset: str = "pro") -> dict[str, Verdict]:
    return {verdict.name: verdict for verdict in machine.judge_machine(facts, preset)}


def test_a_good_machine_has_no_complaint() -> None:
    assert {verdict.level for verdict in judged(GOOD).values()} == {"ok"}
    assert all(verdict.measured for verdict in judged(GOOD).values())


@pytest.mark.parametrize(
    ("changes", "name", "level", "words"),
    [
        ({"glibc": "2.17"}, "system", "failed", "CentOS 7"),
        ({"glibc": ""}, "system", "warning", "container"),
        ({"system": "Windows", "glibc": ""}, "system", "warning", "WSL2"),
        ({"system": "Darwin", "glibc": ""}, "system", "warning", "not supported"),
        ({"python": (3, 9, 16)}, "python", "failed", "3.11"),
        ({"python": (3, 15, 0)}, "python", "warning", "untested"),
        ({"machine": "aarch64", "features": ("asimd",)}, "cpu", "warning", "experimental"),
        ({"features": ()}, "cpu", "warning", "AVX2"),
        ({"has_kernels": False}, "cpu", "warning", "not built"),
        ({"cpu_quota": 0.5}, "cores", "warning", "--cpus"),
        ({"libraries": {"pillow": "missing"}}, "library pillow", "failed", "pip install"),
        ({"encoding": "ANSI_X3.4-1968"}, "locale", "warning", "C.UTF-8"),
        ({"port_owner": "another"}, "port", "failed", "--port"),
        ({"host": "0.0.0.0"}, "door", "warning", "API_KEYS"),
        ({"gpus": ()}, "gpu", "warning", "--gpus all"),
        ({"gpus": (Gpu("T600", 4 * 10**9, "550", 7.5),)}, "gpu 0", "failed", "too small"),
        ({"gpus": (Gpu("A10", 24 * 10**9, "470.1", 8.6),)}, "gpu 0", "failed", "driver"),
        ({"gpus": (Gpu("P40", 24 * 10**9, "550.1", 6.1),)}, "gpu 0", "failed", "Turing"),
        ({"torch_cuda": "13.0"}, "gpu 0", "failed", "driver"),  # CUDA 13 wants 580, this has 550
        ({"torch_cuda": ""}, "torch", "failed", "CPU build"),
        ({"docker": "20.10.7"}, "docker", "warning", "update Docker"),
        ({"container_toolkit": ""}, "container toolkit", "warning", "nvidia-container-toolkit"),
    ],
)
def test_each_fault_is_named_with_its_measure_and_its_mend(
    changes: dict[str, Any], name: str, level: Level, words: str
) -> None:
    verdict = judged(with_facts(**changes))[name]
    assert verdict.level == level
    assert words in verdict.fix
    assert verdict.measured
    assert verdict.needed


def card_budgets(name: str, cache_tokens: int = 262_144) -> tuple[Budget, ...]:
    config = published(name)
    assert config is not None
    return tuple(
        gpu_budget(config, precision, cache_tokens=cache_tokens, max_rows=8)
        for precision in GPU_PRECISIONS
    )


@pytest.mark.parametrize(
    ("size", "gigabytes", "precision", "level", "words"),
    [
        ("4B", 80, "bfloat16", "ok", ""),
        ("4B", 24, "bfloat16", "ok", ""),
        ("4B", 12, "bfloat16", "warning", "MAX_CONCURRENCY"),
        ("4B", 16, "float32", "failed", "--precision bfloat16"),
        ("2B", 8, "bfloat16", "warning", "MAX_CONCURRENCY"),
        ("8B", 16, "bfloat16", "failed", "--precision int8"),
        ("8B", 8, "bfloat16", "failed", "a smaller model"),
        ("4B", 8, "int8", "warning", "MAX_CONCURRENCY"),
    ],
)
def test_a_cards_memory_is_judged_by_model_and_precision(
    size: str, gigabytes: int, precision: str, level: Level, words: str
) -> None:
    """4B in bfloat16: 8.9 GB of weights, 1.3 GB beside, 147 kB a token."""
    budgets = card_budgets(f"Qwen/Qwen3-VL-{size}-Instruct")
    verdict = machine.judge_card_memory(0, gigabytes * 10**9, budgets, precision)
    assert verdict.level == level, verdict
    assert words in verdict.fix
    assert len(verdict.details) == len(GPU_PRECISIONS)


SPEED = CardSpeed("cuda:0", "NVIDIA H100", 3.06e12, 3.35e12)


@pytest.mark.parametrize(
    ("changes", "name", "level", "words"),
    [
        ({}, "gpu 0 bandwidth", "ok", "3,060 GB/s of 3,350 (91%)"),
        ({}, "gpu 0 kernels", "ok", "NVRTC work"),
        ({"read_bytes_per_second": 1e12}, "gpu 0 bandwidth", "warning", "(30%)"),
        ({"peak_bytes_per_second": 0.0}, "gpu 0 bandwidth", "ok", "unknown"),
        ({"triton": "no gcc", "read_bytes_per_second": 0.0}, "gpu 0 kernels", "failed", "no gcc"),
        ({"triton": "x", "read_bytes_per_second": 0.0}, "gpu 0 bandwidth", "warning", "not meas"),
        ({"nvrtc": "NVRTC is not installed"}, "gpu 0 kernels", "warning", "NVRTC is not"),
        ({"failure": "out of memory"}, "gpu 0 at work", "failed", "out of memory"),
    ],
)
def test_a_card_is_judged_by_what_it_did(
    changes: dict[str, Any], name: str, level: Level, words: str
) -> None:
    card = dataclasses.replace(SPEED, **changes)
    found = {v.name: v for v in machine.judge_card_speeds([card], GOOD, "pro")}
    assert found[name].level == level
    assert words in found[name].measured
    assert found[name].needed
    assert bool(found[name].fix) == (level != "ok")


def test_a_card_that_torch_does_not_see_is_told() -> None:
    (verdict,) = machine.judge_card_speeds([], GOOD, "pro")
    assert verdict.level == "failed"
    assert "CUDA_VISIBLE_DEVICES" in verdict.fix


class FakeNvml(types.ModuleType):
    """The driver's library, as far as it is asked: an H100's clock and bus."""

    NVMLError = RuntimeError
    NVML_CLOCK_MEM = 2

    def nvmlInit(self) -> None: ...  # noqa: N802  # the library's own names

    def nvmlDeviceGetHandleByUUID(self, uuid: bytes) -> str:  # noqa: N802
        return uuid.decode()

    def nvmlDeviceGetMaxClockInfo(self, handle: str, kind: int) -> int:  # noqa: N802
        assert (handle, kind) == ("GPU-one", 2)
        return 2619

    def nvmlDeviceGetMemoryBusWidth(self, handle: str) -> int:  # noqa: N802
        return 5120


@pytest.fixture
def fake_card(monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    """Torch with one card and NVML; what computes is Triton's interpreter on the CPU."""
    pytest.importorskip("triton")
    from visiongate.kernels.cuda import probe

    if torch.cuda.is_available():
        pytest.skip("this machine has a card of its own")
    read, is_right = probe.read_rate, probe.is_right
    properties = types.SimpleNamespace(uuid="one", memory_bus_width=4096, memory_clock_rate=10**6)
    monkeypatch.setitem(sys.modules, "pynvml", FakeNvml("pynvml"))
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "NVIDIA H100")
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (1 << 20, 1 << 30))
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: properties)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (9, 0))
    monkeypatch.setattr(torch.cuda, "empty_cache", lambda: None)
    monkeypatch.setattr(probe, "is_right", lambda device: is_right("cpu"))
    monkeypatch.setattr(
        probe, "read_rate", lambda device, num_bytes: read("cpu", num_bytes=num_bytes, repeats=1)
    )
    return monkeypatch


def test_cards_are_measured(fake_card: pytest.MonkeyPatch) -> None:
    (card,) = measure_cards()
    assert card.name == "NVIDIA H100"
    assert card.read_bytes_per_second > 0
    assert card.peak_bytes_per_second == pytest.approx(3.352e12, rel=1e-3)  # 2 x 2619 MHz x 5120
    assert card.triton == ""
    assert card.nvrtc == "NVRTC is not installed"  # this torch is a CPU build
    assert card.failure == ""


def test_without_nvml_torch_tells_the_clock(fake_card: pytest.MonkeyPatch) -> None:
    fake_card.setitem(sys.modules, "pynvml", None)
    (card,) = measure_cards()
    assert card.peak_bytes_per_second == pytest.approx(1.024e12)


def test_a_kernel_that_cannot_be_compiled_is_told_in_a_line(
    fake_card: pytest.MonkeyPatch,
) -> None:
    from visiongate.kernels.cuda import probe

    def without_compiler(device: str) -> bool:
        raise RuntimeError("Failed to find C compiler.\nPlease specify via CC")

    fake_card.setattr(probe, "is_right", without_compiler)
    (card,) = measure_cards()
    assert card.triton == "Failed to find C compiler."
    assert card.read_bytes_per_second == 0


def test_a_card_whose_memory_is_gone_is_told(fake_card: pytest.MonkeyPatch) -> None:
    def full(device: str) -> tuple[int, int]:
        raise RuntimeError("CUDA error: out of memory")

    fake_card.setattr(torch.cuda, "mem_get_info", full)
    assert measure_cards()[0].failure == "CUDA error: out of memory"


def test_the_doctor_asks_the_cards(fake_card: pytest.MonkeyPatch) -> None:
    settings = load({"preset": "pro"}, environ={})
    config = published("Qwen/Qwen3-VL-4B-Instruct")
    found = {v.name: v for v in card_checks(settings, config, GOOD)}
    assert list(found) == ["gpu 0 memory", "gpu 0 bandwidth", "gpu 0 kernels"]
    assert "room for" in found["gpu 0 memory"].measured
    assert "bfloat16" in "".join(found["gpu 0 memory"].details)


def test_pro_without_a_gpu_is_told_loudly_and_cpu_without_one_says_nothing() -> None:
    facts = with_facts(gpus=(), has_driver=False)
    assert "very slow" in judged(facts, "pro")["gpu"].fix
    assert "gpu" not in judged(facts, "cpu")


def test_a_port_that_visiongate_serves_is_no_fault() -> None:
    verdict = judged(with_facts(port_owner="visiongate"))["port"]
    assert verdict.level == "ok"
    assert "--base-url" in verdict.fix


def test_keys_close_the_door() -> None:
    assert judged(with_facts(host="0.0.0.0", has_keys=True))["door"].level == "ok"


@pytest.mark.parametrize(
    ("place", "level"),
    [
        (Place("cache", Path("/c"), 20 * 10**9, True), "ok"),
        (Place("cache", Path("/c"), 1, True), "failed"),
        (Place("logs", Path("/l"), 1, True), "warning"),
        (Place("logs", Path("/l"), 10**12, False), "failed"),
    ],
)
def test_folders_need_room_and_rights(place: Place, level: Level) -> None:
    assert machine.judge_place(place, 15 * 10**9).level == level


PUBLISHED = {"2B": 2_127_532_032, "4B": 4_437_815_808, "8B": 8_767_123_696}


@pytest.mark.parametrize("size", ["2B", "4B", "8B", "32B"])
def test_parameters_of_each_published_shape_are_those_of_the_model(size: str) -> None:
    config = published(f"Qwen/Qwen3-VL-{size}-Thinking")
    assert config is not None
    with torch.device("meta"):
        model = Qwen3VL(config)
    counted = sum(parameter.numel() for parameter in model.parameters())
    assert num_parameters(config) == counted
    assert num_parameters(config) == PUBLISHED.get(size, counted)


def test_parameters_of_the_embedded_model_are_counted_from_its_config() -> None:
    config = ModelConfig.from_pretrained(WEIGHTS)
    with torch.device("meta"):
        model = Qwen3VL(config)
    assert num_parameters(config) == sum(p.numel() for p in model.parameters())
    assert num_linear_weights(config) == num_parameters(config)  # its head is tied


def budgets_of(name: str, cache_tokens: int = 24576) -> tuple[Budget, ...]:
    config = published(name)
    assert config is not None
    return tuple(budget(config, precision, cache_tokens=cache_tokens) for precision in PRECISIONS)


def judge(limit_gb: float, name: str = "Qwen/Qwen3-VL-2B-Instruct") -> Verdict:
    facts = with_facts(memory_limit_bytes=int(limit_gb * 1e9), memory_used_bytes=0)
    return machine.judge_memory(facts, budgets_of(name), "float32")


def test_memory_is_judged_by_what_the_model_needs() -> None:
    """2B: 4.3 GB of weights in float32, 229 kB a token of cache, 1 GB beside."""
    assert judge(12).level == "ok"
    assert judge(4).level == "failed"
    assert "int8" in judge(4).fix
    assert len(judge(12).details) == 3
    assert "container limit 12.0 GB" in judge(12).measured


def test_eight_gigabytes_get_a_float32_profile_that_fits() -> None:
    """The promise of 8 GB: float32 stays, with a smaller cache and two at a time or fewer."""
    verdict = judge(8)
    assert verdict.level == "warning"
    assert "VISIONGATE_CACHE_TOKENS=" in verdict.fix
    tokens = int(verdict.fix.split("CACHE_TOKENS=")[1].split(")")[0])
    chosen = budgets_of("Qwen/Qwen3-VL-2B-Instruct", tokens)[0]
    assert tokens >= 8192
    assert chosen.total_bytes <= 8e9 < chosen.total_bytes + 2048 * chosen.bytes_per_token


def test_memory_that_others_hold_is_a_warning() -> None:
    facts = with_facts(memory_used_bytes=8 * 10**9)
    verdict = machine.judge_memory(facts, budgets_of("Qwen/Qwen3-VL-2B-Instruct"), "float32")
    assert verdict.level == "warning"
    assert "stop what else runs" in verdict.fix


def test_beside_a_gpu_sixteen_gigabytes_are_advised() -> None:
    found = machine.judge_memory(with_facts(memory_limit_bytes=8 * 10**9), (), "x", is_gpu=True)
    assert found.level == "warning"


def judge_card(limit_gb: float, precision: str, max_rows: int = 8) -> Verdict:
    config = published("Qwen/Qwen3-VL-4B-Instruct")
    assert config is not None
    budgets = tuple(
        gpu_budget(config, each, cache_tokens=65536, max_rows=max_rows) for each in GPU_PRECISIONS
    )
    return machine.judge_card_memory(0, int(limit_gb * 1e9), budgets, precision)


def test_eight_gigabytes_of_a_card_hold_the_4b_model_in_8_bits() -> None:
    """4.0 GB of matrices, 0.8 GB of vision tower, 0.6 GB for the driver, and work beside."""
    found = judge_card(8, "bfloat16")
    assert found.level == "failed"
    assert found.fix == "too small: --precision int8"
    for precision in ("int8", "float8"):
        found = judge_card(8, precision)
        assert found.level == "ok"
        assert int(found.measured.split("room for ")[1].split()[0].replace(",", "")) >= 8192
    assert len(found.details) == 4
    assert judge_card(8, "int8", max_rows=64).level == "warning"
    assert judge_card(6, "int8").fix == "too small: a smaller model"
    assert judge_card(80, "bfloat16").measured.endswith("65,536 tokens of 65,536")


def test_the_card_s_memory_is_judged_where_there_is_a_card(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("visiongate.cli.checks.facts.measure", lambda settings: GOOD)
    chosen = {"preset": "pro", "precision": "int8", "gpu_memory_limit": 8 * 10**9}
    found = {verdict.name: verdict for verdict in machine_checks(load(chosen, environ={}))}
    assert found["gpu 0 memory"].level == "warning"  # few tokens for 64 places
    assert found["gpu 0 memory"].measured.startswith("8.0 GB: room for")
    on_cpu = load(chosen | {"device": "cpu"}, environ={})
    assert "gpu 0 memory" not in {verdict.name for verdict in machine_checks(on_cpu)}


def test_float8_without_a_card_is_told() -> None:
    found = machine.judge_memory(GOOD, budgets_of("Qwen/Qwen3-VL-2B-Instruct"), "float8")
    assert found.level == "failed"
    assert "int8" in found.fix


def test_facts_of_this_machine_are_measured() -> None:
    facts = measure(load({"log_dir": "/nowhere/logs"}, environ={}))
    assert facts.memory_limit_bytes > 0
    assert facts.num_cores >= 1
    assert facts.libraries["torch"] == torch.__version__.split("+")[0] or facts.libraries["torch"]
    assert [place.name for place in facts.places] == ["cache", "logs", "data"]
    assert not Path("/nowhere").exists()


def test_who_holds_a_port_is_found_out(server: Server) -> None:
    assert port_owner("127.0.0.1", int(server.url.rsplit(":", 1)[1])) == "visiongate"
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        free = other.getsockname()[1]
    assert port_owner("127.0.0.1", free) == ""


def test_a_damaged_file_is_found_by_its_hash(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("{}")
    listed = {"config.json": {"size": 2, "algorithm": "sha256", "digest": "0" * 64}}
    (tmp_path / "visiongate.json").write_text(json.dumps({"files": listed}))
    verdict = judge_hashes(tmp_path)
    assert verdict.level == "failed"
    assert "config.json" in verdict.measured


def test_states_of_a_server_are_told() -> None:
    assert judge_health(200, '{"status":"healthy"}', 0.1).level == "ok"
    assert "model_loading.log" in judge_health(503, '{"status":"loading"}', 0.1).fix
    good = {"state": "ready", "model": "m", "precision": "float32", "device": "cpu"}
    assert judge_details(good).level == "ok"
    fallen = good | {"state": "degraded", "reason": "no GPU is visible"}
    assert judge_details(fallen).level == "warning"
    assert "no GPU" in judge_details(fallen).fix


def test_boxes_are_read_and_compared() -> None:
    assert read_box('[{"bbox_2d": [1, 2, 3.5, 4], "label": "x"}]') == (1, 2, 3.5, 4)
    assert read_box("nothing here") == (0, 0, 0, 0)
    assert overlap((0, 0, 10, 10), (0, 0, 10, 10)) == 1
    assert overlap((0, 0, 10, 10), (5, 0, 15, 10)) == pytest.approx(1 / 3)
    assert overlap((0, 0, 1, 1), (2, 2, 3, 3)) == 0


def test_a_blind_model_fails_and_a_seeing_one_passes() -> None:
    truth = {known.data: known for known in draw_all(5)}

    async def blind(picture: bytes, question: str) -> str:
        return "a picture"

    async def seeing(picture: bytes, question: str) -> str:
        known = truth[picture]
        return str(list(known.box)) if known.box else f"It is {known.answer}."

    assert asyncio.run(check_sight(blind, 5))[-1].level == "failed"
    verdicts = asyncio.run(check_sight(seeing, 5))
    assert {verdict.level for verdict in verdicts} == {"ok"}


def test_pictures_differ_with_the_seed_and_repeat_with_it() -> None:
    def answers(seed: int) -> list[str]:
        return [known.answer for known in draw_all(seed)]

    assert answers(1) == answers(1)
    assert answers(1) != answers(2)
    names = [known.name for known in draw_all(1)]
    assert names[0] == "random amount"
    assert "format WEBP" in names
    assert "EXIF turn 6" in names
    assert names[-1] == "a box"
    assert all(isinstance(known, Known) for known in draw_all(1))


def run_doctor(folder: Path, *arguments: str, **env: str) -> subprocess.CompletedProcess[str]:
    environment = os.environ | {"PYTHONPATH": str(ROOT / "src"), **env}
    return subprocess.run(
        [sys.executable, "-c", START, "doctor", *arguments],
        cwd=folder,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
        timeout=100,
    )


def test_the_embedded_model_passes_here_under_a_plain_c_locale(tmp_path: Path) -> None:
    done = run_doctor(tmp_path, "--json", "--seed", "11", LANG="C", VISIONGATE_PORT="0")
    found = json.loads(done.stdout)
    assert done.returncode == 0, done.stdout + done.stderr
    assert found["ok"] is True
    checks = {check["name"]: check for check in found["checks"]}
    assert checks["model"]["measured"].startswith("visiongate-mini")
    assert "right" in checks["sight"]["measured"]
    assert checks["sight"]["level"] == "ok"
    assert set(checks["memory"]) == {"name", "level", "measured", "needed", "fix", "details"}


def test_a_running_server_is_asked_and_a_missing_one_is_told(
    server: Server, tmp_path: Path
) -> None:
    done = run_doctor(tmp_path, "--base-url", server.url, "--seed", "3")
    assert done.returncode == 0, done.stdout + done.stderr
    assert "healthy" in done.stdout
    assert "FAIL" not in done.stdout
    gone = run_doctor(tmp_path, "--base-url", "http://127.0.0.1:9")
    assert gone.returncode == 1
    assert "does not answer" in gone.stdout
    assert "docker logs" in gone.stdout


@pytest.mark.slow
def test_a_server_with_keys_asks_the_doctor_for_one(tmp_path: Path) -> None:
    with serve(tmp_path, VISIONGATE_API_KEYS="sk-doctor") as guarded:
        without = run_doctor(tmp_path, "--base-url", guarded.url)
        assert without.returncode == 1
        assert "--key" in without.stdout
        assert run_doctor(tmp_path, "--base-url", guarded.url, "--key", "sk-doctor").returncode == 0


def test_a_model_that_is_not_here_is_told_with_the_command_that_fetches_it(
    tmp_path: Path,
) -> None:
    done = run_doctor(tmp_path, "--preset", "cpu", "--skip-model", HF_HOME=str(tmp_path))
    assert "visiongate pull Qwen/Qwen3-VL-2B-Instruct" in done.stdout
    assert "float32" in done.stdout
