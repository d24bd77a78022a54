"""Every block marked `run` in README and docs is executed against a real server, in its order.

A block ```text after it holds words that its output must contain, one a line.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from tests.gateway.serving import ROOT, Server

PAGES = [ROOT / "README.md", ROOT / "README.zh-CN.md", *sorted((ROOT / "docs").rglob("*.md"))]
BLOCK = re.compile(
    r"^```(?P<kind>bash|python) run(?P<slow> slow)?\n(?P<code>.*?)^```\n"
    r"(?:```text\n(?P<expected>.*?)^```\n)?",
    re.MULTILINE | re.DOTALL,
)
HOST = "localhost:8080"


@dataclass(frozen=True, slots=True)
class Block:
    """One runnable block of a page."""

    kind: str
    code: str
    expected: tuple[str, ...]
    is_slow: bool


def blocks_of(page: Path) -> list[Block]:
    found = BLOCK.finditer(page.read_text(encoding="utf-8") + "\n")
    return [
        Block(m["kind"], m["code"], tuple((m["expected"] or "").splitlines()), bool(m["slow"]))
        for m in found
    ]


RUNNABLE = [page for page in PAGES if page.is_file() and blocks_of(page)]


QUICK = {"README.md", "README.zh-CN.md", "quickstart.md", "invoice.md"}


def marked(page: Path) -> Any:
    """A page as a parameter; most recipes wait for the slow part."""
    marks = () if page.name in QUICK else (pytest.mark.slow,)
    return pytest.param(page, id=str(page.relative_to(ROOT)), marks=marks)


@pytest.mark.parametrize("page", [marked(page) for page in RUNNABLE])
def test_commands_of_a_page_do_what_the_page_says(
    page: Path, server: Server, tmp_path: Path
) -> None:
    for name in ("examples", "deploy"):
        (tmp_path / name).symlink_to(ROOT / name)
    for block in blocks_of(page):
        if not block.is_slow:
            run(block, server, tmp_path)


def run(block: Block, server: Server, folder: Path) -> None:
    """Executes a block as its reader would, but on the server's real port."""
    host = server.url.removeprefix("http://")
    code = block.code.replace(HOST, host)
    bin_folder = Path(sys.executable).parent
    environment = os.environ | {
        "PATH": f"{bin_folder}:{os.environ['PATH']}",
        "PYTHONPATH": str(ROOT / "src"),
        "HF_HUB_OFFLINE": "1",
        "COLUMNS": "200",
    }
    command = (
        ["bash", "-euo", "pipefail", "-c", code]
        if block.kind == "bash"
        else [
            sys.executable,
            "-c",
            code,
        ]
    )
    done = subprocess.run(
        command,
        cwd=folder,
        env=environment,
        capture_output=True,
        text=True,
        encoding="utf-8",
        timeout=110,
        check=False,
    )
    output = done.stdout + done.stderr
    assert done.returncode == 0, f"{block.code}\n---\n{output}"
    for line in block.expected:
        assert line.strip() in output, f"{line!r} is not in\n{output}\n--- of\n{block.code}"


def test_links_between_pages_lead_somewhere() -> None:
    for page in PAGES:
        if not page.is_file():
            continue
        for target in re.findall(r"\]\(([^)#]+?)(?:#[^)]*)?\)", page.read_text(encoding="utf-8")):
            if "://" not in target:
                assert (page.parent / target).exists(), f"{page.name} links to {target}"
