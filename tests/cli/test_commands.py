"""The commands, run as people run them."""

from __future__ import annotations

import json
import sqlite3
import subprocess
import sys
from pathlib import Path

import pytest

from tests.gateway.serving import EXAMPLES, Server, command, environment_of_tests
from tests.pictures import draw_receipt

TOTAL = "What is the total?"


def test_ask_streams_the_true_answer_without_a_server(tmp_path: Path) -> None:
    found = command(tmp_path, "ask", str(EXAMPLES / "receipt.png"), TOTAL)
    assert found.strip() == "$20.47"


def test_ask_talks_to_a_running_server(server: Server, tmp_path: Path) -> None:
    arguments = ["ask", str(EXAMPLES / "receipt.png"), TOTAL, "--base-url", server.url]
    assert command(tmp_path, *arguments).strip() == "$20.47"


def test_ask_says_what_is_wrong_in_a_sentence(server: Server, tmp_path: Path) -> None:
    text = command(tmp_path, "ask", "nothing.png", TOTAL, status=2)
    assert "nothing.png cannot be read" in text
    text = command(tmp_path, "ask", "Hi", "--base-url", "http://127.0.0.1:9", status=2)
    assert "no server answers" in text
    (tmp_path / "bad.png").write_bytes(b"no picture")
    arguments = ["ask", str(tmp_path / "bad.png"), TOTAL, "--base-url", server.url]
    assert "no picture type that is accepted" in command(tmp_path, *arguments, status=2)


def test_config_show_lists_every_setting_with_its_origin(tmp_path: Path) -> None:
    """B04."""
    (tmp_path / "v.toml").write_text('port = 9000\nmax_queue = 7\napi_keys = ["hidden-key"]\n')
    found = json.loads(
        command(
            tmp_path, "config", "show", "--json", "--preset", "pro", "--config", "v.toml",
            "--set", "max_queue=9",
        )
    )  # fmt: skip
    table = {row["name"]: row for row in found}
    assert table["port"]["value"] == "9000"
    assert table["port"]["origin"] == "file"
    assert table["max_queue"] | {"variable": ""} == {
        "name": "max_queue", "value": "9", "origin": "flag", "variable": "",
    }  # fmt: skip
    assert table["precision"]["origin"] == "preset"
    assert "hidden-key" not in json.dumps(found)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--set", "port=99999"], ["port", "99999", "0 to 65535"]),
        (["--set", "nonsense=1"], ["nonsense", "not a setting"]),
        (["--preset", "huge"], ["preset", "huge", "mini, cpu, pro"]),
        (["--set", "precision=int3"], ["precision", "int3", "float32, bfloat16, int8"]),
        (["--config", "none.toml"], ["none.toml", "cannot be read"]),
        (["--set", "port"], ["has no value"]),
    ],
)
def test_wrong_settings_stop_with_name_value_and_range(
    tmp_path: Path, arguments: list[str], words: list[str]
) -> None:
    text = command(tmp_path, "config", "show", *arguments, status=2)
    assert all(word in text for word in words), text
    assert "Traceback" not in text


def test_serve_names_a_model_that_is_not_there(tmp_path: Path) -> None:
    text = command(tmp_path, "serve", "--model", str(tmp_path), "--port", "0", status=2)
    assert "config.json" in text


def test_serve_names_a_busy_port(server: Server, tmp_path: Path) -> None:
    port = server.url.rsplit(":", 1)[1]
    text = command(tmp_path, "serve", "--port", port, status=2)
    assert "cannot listen" in text
    assert "--port" in text


def test_keys_are_made_listed_and_revoked(tmp_path: Path) -> None:
    made = command(tmp_path, "keys", "create", "--name", "shop", "--scopes", "chat", "--rate", "9")
    key = next(line.split()[1] for line in made.splitlines() if line.startswith("key:"))
    listed = command(tmp_path, "keys", "list")
    assert "shop" in listed
    assert key not in listed
    with sqlite3.connect(tmp_path / "data" / "visiongate.db") as database:
        assert key not in "".join(database.iterdump())
    database.close()
    command(tmp_path, "keys", "revoke", "shop")
    assert "revoked" in command(tmp_path, "keys", "list")
    assert "no good key" in command(tmp_path, "keys", "revoke", "shop", status=2)
    assert "scopes" in command(tmp_path, "keys", "create", "--scopes", "everything", status=2)


def _folder_of_receipts(folder: Path, number: int) -> list[str]:
    folder.mkdir()
    totals = []
    for seed in range(number):
        receipt = draw_receipt(seed)
        (folder / f"{seed}.png").write_bytes(receipt.png)
        totals.append(receipt.total)
    return totals


def test_batch_answers_a_folder_and_resumes(server: Server, tmp_path: Path) -> None:
    totals = _folder_of_receipts(tmp_path / "in", 4)
    (tmp_path / "in" / "broken.png").write_bytes(b"no picture")
    arguments = ["batch", "in", "--prompt", TOTAL, "--out", "out.csv", "--base-url", server.url]
    text = command(tmp_path, *arguments, status=1)
    assert "4 answered, 1 failed" in text
    rows = (tmp_path / "out.csv").read_text(encoding="utf-8-sig").splitlines()
    assert rows[0].startswith("name,prompt,response,error")
    assert [row.split(",")[2] for row in rows[1:5]] == totals
    (tmp_path / "in" / "broken.png").unlink()
    again = command(tmp_path, *arguments)
    assert "4 of 4 were done before" in again


def test_batch_reads_lines_and_writes_a_spreadsheet(
    server: Server,
    tmp_path: Path,
) -> None:
    import openpyxl

    totals = _folder_of_receipts(tmp_path / "in", 2)
    lines = [
        {"image": "in/0.png", "prompt": TOTAL},
        {"image": "in/1.png", "prompt": "What is the store name?", "id": "second"},
    ]
    (tmp_path / "in.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    command(tmp_path, "batch", "in.jsonl", "--out", "out.xlsx", "--base-url", server.url)
    sheet = openpyxl.load_workbook(tmp_path / "out.xlsx").active
    assert sheet is not None
    rows = list(sheet.iter_rows(values_only=True))
    assert rows[1][2] == totals[0]
    assert rows[2][0] == "second"


def test_the_gateway_starts_quickly_and_never_imports_torch(tmp_path: Path) -> None:
    code = f"""
import sys, time
start = time.perf_counter()
from visiongate.gateway.app import create_app
from visiongate.gateway.launch import make_backend
from visiongate.gateway.settings import load
app = create_app(*(lambda s: (s, make_backend(s)))(load({{"data_dir": "{tmp_path}/d",
    "log_dir": "{tmp_path}/l"}}, {{}})))
assert "torch" not in sys.modules
print(time.perf_counter() - start)
app.state.service.audit.close(); app.state.service.store.close(); app.state.service.logs.close()
"""
    found = subprocess.run(
        [sys.executable, "-W", "error", "-c", code],
        env=environment_of_tests(),
        capture_output=True,
        text=True,
        check=False,
    )
    assert found.returncode == 0, found.stderr
    assert float(found.stdout) < 5.0  # under one second alone; other jobs share the cores here
