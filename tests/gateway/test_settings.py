"""A setting is found in the right layer, and a wrong one stops the start."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from visiongate.errors import InvalidSettings
from visiongate.gateway.settings import Settings, allowed_values, environment_names, load


def test_flags_go_before_environment_before_file_before_preset(tmp_path: Path) -> None:
    file = tmp_path / "v.toml"
    file.write_text("port = 1111\nmax_queue = 5\nmax_images = 3\n")
    environ = {"VISIONGATE_PORT": "2222", "VISIONGATE_MAX_QUEUE": "6"}
    found = load({"port": 3333, "preset": "pro"}, environ, file)
    assert (found.port, found.max_queue, found.max_images) == (3333, 6, 3)
    assert (found.precision, found.max_concurrency) == ("bfloat16", 64)
    assert [found.origin(n) for n in ("port", "max_queue", "max_images", "precision", "host")] == [
        "flag", "environment", "file", "preset", "default",
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("variable", "value", "name", "expected"),
    [
        ("MAX_CONCURRENCY", "5", "max_concurrency", 5),
        ("BATCH_SIZE", "2", "batch_size", 2),
        ("USE_ONNX_RUNTIME", "true", "use_onnx_runtime", True),
        ("MODEL_PATH", "/weights", "model", "/weights"),
        ("VISIONGATE_API_KEYS", "a, b", "api_keys", 2),
    ],
)
def test_the_promised_plain_names_work(
    variable: str, value: str, name: str, expected: object
) -> None:
    found = getattr(load({}, {variable: value}), name)
    assert (len(found) if name == "api_keys" else found) == expected


def test_the_prefixed_name_wins_over_the_plain_one() -> None:
    environ = {"MAX_CONCURRENCY": "5", "VISIONGATE_MAX_CONCURRENCY": "6"}
    assert load({}, environ).max_concurrency == 6


def test_ports_and_titles_are_the_promised_ones() -> None:
    """A28, B24, B36."""
    assert (load({}, {}).port, load({}, {}).title) == (8080, "VisionGate mini")
    cpu = load({"preset": "cpu"}, {})
    assert (cpu.port, cpu.title, cpu.precision) == (8080, "Qwen3-VL-2B", "float32")
    assert cpu.model == "Qwen/Qwen3-VL-2B-Instruct"
    pro = load({"preset": "pro"}, {})
    assert (pro.port, pro.title) == (8501, "Qwen3-VL-4B Pro · 多模态理解引擎")
    own = load({"model": "/models/My-8B"}, {})
    assert (own.preset, own.title, own.is_demo) == ("cpu", "My-8B", False)


def test_secrets_are_masked_everywhere() -> None:
    found = load({"api_keys": "top-secret"}, {})
    assert "top-secret" not in repr(found)
    with pytest.raises(InvalidSettings) as caught:
        load({"api_keys": 5}, {})
    assert "hidden" in caught.value.message


@settings(deadline=None)
@given(st.integers().filter(lambda number: not 1 <= number <= 4096))
def test_every_number_out_of_range_is_refused_by_name(number: int) -> None:
    with pytest.raises(InvalidSettings) as caught:
        load({}, {"MAX_CONCURRENCY": str(number)})
    assert "VISIONGATE_MAX_CONCURRENCY" in caught.value.message
    assert "1 to 4096" in caught.value.message


def test_every_setting_has_a_description_a_range_and_a_variable() -> None:
    for name, field in Settings.model_fields.items():
        assert field.description, name
        assert field.description.endswith("."), name
        assert allowed_values(name), name
        assert environment_names(name)[0] == f"VISIONGATE_{name.upper()}"
