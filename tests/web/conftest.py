"""The page in Debian's Chromium, against the real server with the embedded model."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import pytest
from playwright.sync_api import (
    Browser,
    BrowserContext,
    ConsoleMessage,
    Locator,
    Page,
    Request,
    Route,
    sync_playwright,
)

from tests.gateway.serving import Server, serve

ROOT = Path(__file__).parents[2]
EXAMPLES = ROOT / "examples"
STATIC = ROOT / "src" / "visiongate" / "static"
CHROMIUM = shutil.which("chromium")
OTHER_NAME = "visiongate.test"
"""A name for 127.0.0.1 under which browsers do not trust plain http."""

FLAGS = [
    "--no-first-run",
    "--disable-gpu",
    "--disable-quic",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--disable-dev-shm-usage",
    "--use-fake-device-for-media-stream",
    "--use-fake-ui-for-media-stream",
]
RULES = f"--host-resolver-rules=MAP {OTHER_NAME} 127.0.0.1, MAP * ~NOTFOUND, EXCLUDE 127.0.0.1"

REPORTS = """
document.addEventListener("securitypolicyviolation", (event) =>
  console.error("CSP: " + event.violatedDirective + " " + event.blockedURI));
"""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if Path(__file__).parent in item.path.parents:
            item.add_marker(pytest.mark.browser)


@dataclass
class Visit:
    """A page that somebody opened, and everything that went wrong on it."""

    page: Page
    url: str
    faults: list[str] = field(default_factory=list)
    requests: list[Request] = field(default_factory=list)
    expects_failures: bool = False

    def on_console(self, message: ConsoleMessage) -> None:
        is_expected = self.expects_failures and "Failed to load resource" in message.text
        if message.type in {"error", "warning"} and not is_expected:
            self.faults.append(f"{message.type}: {message.text}")

    def on_request(self, request: Request) -> None:
        self.requests.append(request)
        if not request.url.startswith((self.url, "blob:", "data:")):
            self.faults.append(f"left the host: {request.url}")

    def button(self, name: str) -> Locator:
        return self.page.get_by_role("button", name=name, exact=True)

    def add_pictures(self, *files: Path | dict[str, Any]) -> None:
        self.page.locator("input[type=file]").first.set_input_files(list(files))  # type: ignore[arg-type]  # paths or payloads, never both

    def type_question(self, words: str) -> None:
        self.page.locator("#question").fill(words)

    def ask(self, words: str) -> Locator:
        """Sends a question and gives its round."""
        count = self.rounds().count()
        self.type_question(words)
        self.page.keyboard.press("Enter")
        return self.rounds().nth(count)

    def rounds(self) -> Locator:
        return self.page.locator("li.round")

    def answer(self, which: Locator) -> str:
        """The text of a round's answer, once it is complete."""
        which.locator(".foot").wait_for(timeout=60_000)
        return which.locator(".answer").inner_text()

    def posts(self) -> list[dict[str, Any]]:
        """The bodies of the questions that were sent."""
        sent = [r for r in self.requests if r.url.endswith("/v1/chat/completions")]
        return [json.loads(request.post_data or "{}") for request in sent]


class OpenPage(Protocol):
    """Opens the page as a visitor with these traits."""

    def __call__(
        self,
        width: int = 1440,
        height: int = 900,
        language: str = "en-US",
        theme: str = "light",
        url: str | None = None,
        scripts: tuple[str, ...] = (),
        path: str = "/",
    ) -> Visit: ...


@pytest.fixture(scope="session")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    if not (STATIC / "index.html").is_file():
        pytest.skip("the page is not built: python hatch_build.py web")
    folder = tmp_path_factory.mktemp("server")
    (folder / "tmp").mkdir()
    with serve(folder, TMPDIR=str(folder / "tmp")) as running:
        yield running


@pytest.fixture(scope="session")
def browser() -> Iterator[Browser]:
    if CHROMIUM is None:
        pytest.skip("chromium is not installed (apt-get install chromium)")
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(
            executable_path=CHROMIUM, chromium_sandbox=False, args=[*FLAGS, RULES]
        )
        yield browser
        browser.close()


@pytest.fixture
def open_page(browser: Browser, server: Server) -> Iterator[OpenPage]:
    contexts: list[BrowserContext] = []
    visits: list[Visit] = []

    def open_one(
        width: int = 1440,
        height: int = 900,
        language: str = "en-US",
        theme: str = "light",
        url: str | None = None,
        scripts: tuple[str, ...] = (),
        path: str = "/",
    ) -> Visit:
        context = browser.new_context(
            viewport={"width": width, "height": height},
            locale=language,
            color_scheme="dark" if theme == "dark" else "light",
            reduced_motion="reduce",
        )
        contexts.append(context)
        for script in (REPORTS, *scripts):
            context.add_init_script(script)
        page = context.new_page()
        page.set_default_timeout(20_000)
        visit = Visit(page, url or server.url)
        visits.append(visit)
        page.on("console", visit.on_console)
        page.on("pageerror", lambda error: visit.faults.append(f"thrown: {error}"))
        page.on("request", visit.on_request)
        page.on("dialog", lambda dialog: visit.faults.append(f"pop-up: {dialog.message}"))
        page.goto(visit.url + path)
        page.locator("[data-light='green'], [data-light='blue']").first.wait_for()
        return visit

    yield open_one
    for context in contexts:
        context.close()
    assert [fault for visit in visits for fault in visit.faults] == []


@pytest.fixture
def visit(open_page: OpenPage) -> Visit:
    return open_page()


@pytest.fixture(scope="session")
def axe() -> str:
    source = ROOT / "webui" / "node_modules" / "axe-core" / "axe.min.js"
    if not source.is_file():
        pytest.skip("axe-core is not installed (python hatch_build.py web installs it)")
    return source.read_text(encoding="utf-8")


def lengthen(visit: Visit, numbers: int = 400, max_tokens: int = 2000) -> Callable[[], None]:
    """Makes answers long: the page's own requests, with a schema that asks for many numbers."""
    schema = {"type": "array", "items": {"type": "integer"}, "minItems": numbers}

    def change(route: Route) -> None:
        body = json.loads(route.request.post_data or "{}")
        form = {"type": "json_schema", "json_schema": {"name": "long", "schema": schema}}
        body |= {"response_format": form, "max_tokens": max_tokens, "repetition_guard": False}
        route.continue_(post_data=json.dumps(body))

    visit.page.route("**/v1/chat/completions", change)
    return lambda: visit.page.unroute("**/v1/chat/completions")
