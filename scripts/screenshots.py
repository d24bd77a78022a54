"""Renders the pictures of the documentation from the real page, with the embedded model answering.

    python scripts/screenshots.py [NAME…]

Needs Debian's chromium and the built page (`python hatch_build.py web`). Writes
`docs/images/NAME.webp`. The Pro layout is shown with the embedded weights in place of the
published ones.
"""

from __future__ import annotations

import contextlib
import io
import os
import shutil
import socket
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path

from PIL import Image
from playwright.sync_api import Browser, Page, sync_playwright

ROOT = Path(__file__).resolve().parents[1]
IMAGES = ROOT / "docs" / "images"
EXAMPLES = ROOT / "examples"
WEIGHTS = ROOT / "src" / "visiongate" / "mini" / "weights"
PRO = [
    *("--preset", "pro", "--model", str(WEIGHTS), "--set", "device=cpu"),
    *("--precision", "float32"),
    *("--set", "model_name=Qwen3-VL-4B Pro · 多模态理解引擎"),
]

Shot = Callable[[Browser, str, str], Page]


def main(names: list[str]) -> int:
    """Renders the named pictures, or all."""
    IMAGES.mkdir(parents=True, exist_ok=True)
    wanted = {name: shot for name, shot in SHOTS.items() if not names or name in names}
    with serve() as mini, serve(*PRO) as pro, sync_playwright() as playwright:
        browser = playwright.chromium.launch(
            executable_path=shutil.which("chromium"),
            chromium_sandbox=False,
            args=["--disable-gpu", "--host-resolver-rules=MAP * ~NOTFOUND, EXCLUDE 127.0.0.1"],
        )
        for name, shot in wanted.items():
            page = shot(browser, mini, pro)
            save(page, name)
            page.context.close()
        browser.close()
    total = sum(path.stat().st_size for path in IMAGES.iterdir())
    print(f"docs/images: {total / 1000:.0f} kB")
    return 0


def save(page: Page, name: str) -> None:
    """The page as it stands, as a compressed picture."""
    page.wait_for_timeout(400)
    path = IMAGES / f"{name}.webp"
    with Image.open(io.BytesIO(page.screenshot())) as picture:
        picture.convert("RGB").save(path, "WEBP", quality=86, method=6)
    print(f"{path.relative_to(ROOT)}: {path.stat().st_size / 1000:.0f} kB")


# The pictures


def first_page(browser: Browser, mini: str, pro: str) -> Page:
    """The first page with its examples."""
    page = open_page(browser, mini)
    page.locator(".sample img").last.wait_for()
    return page


def conversation(browser: Browser, mini: str, pro: str) -> Page:
    """Three areas, light: a receipt read, a follow-up, what the model saw."""
    page = open_page(browser, mini, height=1000)
    start(page, "Receipt amounts", "Send")
    ask(page, "What is the store name?")
    page.get_by_role("button", name="Receipt", exact=True).last.click()
    return page


def boxes(browser: Browser, mini: str, pro: str) -> Page:
    """A box over the original."""
    page = open_page(browser, mini, height=960)
    start(page, "Locate a shape", "Send")
    page.locator("figcaption .button").hover()
    return page


def pro_dark(browser: Browser, mini: str, pro: str) -> Page:
    """Two columns, dark, Chinese."""
    page = open_page(browser, pro, theme="dark", language="zh-CN")
    start(page, "表格", "发送")
    ask(page, "What is the Price of Backpack?")
    return page


def batch(browser: Browser, mini: str, pro: str) -> Page:
    """The batch tab when it has finished."""
    page = open_page(browser, mini, height=820, path="/#batch")
    names = ["receipt", "menu", "table", "id_card"]
    field = page.locator("input[type=file]").first
    field.set_input_files([EXAMPLES / f"{name}.png" for name in names])
    page.get_by_role("button", name="Exact reading").click()
    page.get_by_label("Question for every picture").fill("What is the title?")
    page.get_by_role("button", name="Start", exact=True).click()
    page.get_by_text("Batch finished.").wait_for(timeout=120_000)
    return page


def phone(browser: Browser, mini: str, pro: str) -> Page:
    """A phone: a chart, asked in Chinese."""
    page = open_page(browser, mini, width=390, height=780, language="zh-CN", scale=2)
    start(page, "图表", "发送")
    return page


def phone_dark(browser: Browser, mini: str, pro: str) -> Page:
    """A phone at night: a table."""
    page = open_page(browser, mini, width=390, height=780, language="zh-CN", scale=2, theme="dark")
    start(page, "表格", "发送")
    return page


SHOTS: dict[str, Shot] = {
    "first-page": first_page,
    "conversation": conversation,
    "boxes": boxes,
    "pro-dark": pro_dark,
    "batch": batch,
    "phone": phone,
    "phone-dark": phone_dark,
}


# How they are made


def open_page(
    browser: Browser,
    url: str,
    *,
    width: int = 1440,
    height: int = 900,
    theme: str = "light",
    language: str = "en-US",
    scale: int = 1,
    path: str = "/",
) -> Page:
    """The page, ready to be asked."""
    context = browser.new_context(
        viewport={"width": width, "height": height},
        locale=language,
        color_scheme="dark" if theme == "dark" else "light",
        device_scale_factor=scale,
        reduced_motion="reduce",
        has_touch=width < 500,
    )
    page = context.new_page()
    page.goto(url + path)
    page.locator("[data-light='green']").first.wait_for(timeout=30_000)
    return page


def start(page: Page, task: str, send: str) -> None:
    """An example, by its two clicks."""
    page.get_by_role("button", name=task, exact=True).first.click()
    page.locator(".thumb img").first.wait_for()
    page.get_by_role("button", name=send, exact=True).click()
    finish(page)


def ask(page: Page, question: str) -> None:
    """A further question."""
    page.locator("#question").fill(question)
    page.keyboard.press("Enter")
    finish(page)


def finish(page: Page) -> None:
    """Waits for the answer, and moves focus and pointer out of the picture."""
    page.locator("li.round .answer[aria-busy=true]").wait_for(state="detached", timeout=60_000)
    page.locator("[data-light='green']").first.wait_for()
    page.evaluate("document.activeElement.blur()")
    page.mouse.move(2, 2)


@contextlib.contextmanager
def serve(*arguments: str) -> Iterator[str]:
    """A server on a free port; gives its address."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    url = f"http://127.0.0.1:{port}"
    code = "from visiongate.cli import main; main()"
    command = [sys.executable, "-c", code, "serve", "--port", str(port), *arguments]
    env = {**os.environ, "PYTHONPATH": str(ROOT / "src")}
    with tempfile.TemporaryDirectory() as folder:
        process = subprocess.Popen(command, cwd=folder, env=env, stdout=subprocess.DEVNULL)
        try:
            wait_until_healthy(url, process)
            yield url
        finally:
            process.terminate()
            process.wait(30)


def wait_until_healthy(url: str, process: subprocess.Popen[bytes]) -> None:
    """Returns when the server would answer a request."""
    for _ in range(600):
        if process.poll() is not None:
            raise SystemExit(f"the server ended with code {process.returncode}")
        with contextlib.suppress(urllib.error.URLError, ConnectionError):
            urllib.request.urlopen(f"{url}/health", timeout=2)  # noqa: S310 - our own server
            return
        time.sleep(0.2)
    raise SystemExit("the server did not become ready")


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
