"""What the page keeps, where, and how it forgets."""

from __future__ import annotations

import base64
import json
from pathlib import Path

from playwright.sync_api import expect

from tests.gateway.serving import Server
from tests.pictures import draw_receipt
from tests.web.conftest import EXAMPLES, OpenPage, Visit, lengthen

RECEIPT = EXAMPLES / "receipt.png"


def test_the_history_survives_a_reload(visit: Visit) -> None:
    visit.add_pictures(RECEIPT)
    visit.answer(visit.ask("What is the total?"))
    visit.page.reload()
    which = visit.rounds().first
    expect(which.get_by_role("img", name="receipt.png")).to_be_visible()
    expect(which.locator(".question")).to_have_text("What is the total?")
    expect(which.locator(".answer")).to_contain_text("$20.47")
    # And goes on, with the picture that is kept.
    assert "2026-03-14" in visit.answer(visit.ask("What is the date?"))


def test_a_page_that_is_closed_during_an_answer_still_shows_the_question(visit: Visit) -> None:
    visit.add_pictures(RECEIPT)
    lengthen(visit, numbers=900)
    visit.ask("What is the total?").locator(".blocks").wait_for()
    visit.page.reload()
    which = visit.rounds().first
    expect(which.locator(".question")).to_have_text("What is the total?")
    expect(which).to_contain_text("Stopped.")
    expect(which.get_by_role("img", name="receipt.png")).to_be_visible()


def test_clearing_during_an_answer_leaves_nothing(visit: Visit) -> None:
    visit.add_pictures(RECEIPT)
    lengthen(visit, numbers=900)
    visit.ask("What is the total?").locator(".blocks").wait_for()
    visit.button("Clear history").click()
    visit.button("Clear").click()
    expect(visit.rounds()).to_have_count(0)
    expect(visit.page.locator("#question")).to_be_enabled()
    visit.button("Conversations").click()
    expect(visit.page.get_by_role("dialog").locator("li")).to_have_count(0)


def test_several_conversations_stand_side_by_side(visit: Visit) -> None:
    visit.add_pictures(RECEIPT)
    visit.answer(visit.ask("What is the total?"))
    visit.button("New conversation").click()
    visit.add_pictures(EXAMPLES / "menu.png")
    visit.answer(visit.ask("What is the cheapest item?"))
    visit.button("Conversations").click()
    drawer = visit.page.get_by_role("dialog")
    expect(drawer.locator("li")).to_have_count(2)
    drawer.get_by_text("What is the total?").click()
    expect(visit.rounds().first.locator(".answer")).to_contain_text("$20.47")
    visit.button("Conversations").click()
    drawer.get_by_role("button", name="Delete “What is the cheapest item?”").click()
    expect(drawer.locator("li")).to_have_count(1)


def test_clearing_forgets_the_conversation_here_and_on_the_server(
    visit: Visit, server: Server
) -> None:
    visit.add_pictures(RECEIPT)
    visit.answer(visit.ask("What is the total?"))
    visit.answer(visit.ask("What is the date?"))
    session = visit.posts()[-1]["session_id"]
    assert server.get(f"/api/sessions/{session}").status_code == 200
    visit.button("Clear history").click()
    with visit.page.expect_response(lambda r: r.request.method == "DELETE") as told:
        visit.button("Clear").click()
    assert told.value.ok
    assert server.get(f"/api/sessions/{session}").status_code == 404
    expect(visit.rounds()).to_have_count(0)
    visit.page.reload()
    expect(visit.page.get_by_role("heading", name="Ask about a picture")).to_be_visible()
    assert visit.rounds().count() == 0


def test_a_conversation_is_exported_as_markdown_and_json(visit: Visit, tmp_path: Path) -> None:
    visit.add_pictures(RECEIPT)
    visit.answer(visit.ask("What is the total?"))
    visit.button("Export").click()
    with visit.page.expect_download() as markdown:
        visit.button("as Markdown").click()
    markdown.value.save_as(tmp_path / "a.md")
    assert "## What is the total?" in (tmp_path / "a.md").read_text(encoding="utf-8")
    with visit.page.expect_download() as exported:
        visit.button("as JSON").click()
    exported.value.save_as(tmp_path / "a.json")
    (first,) = json.loads((tmp_path / "a.json").read_text(encoding="utf-8"))["rounds"]
    assert first["answer"] == "$20.47"
    assert first["vision"]["images"][0]["tokens"] > 0


def test_no_picture_survives_on_the_server(visit: Visit, server: Server) -> None:
    receipt = draw_receipt(23)
    visit.add_pictures({"name": "secret.png", "mimeType": "image/png", "buffer": receipt.png})
    assert receipt.total in visit.answer(visit.ask("What is the total?"))
    traces = (receipt.png[60:120], base64.b64encode(receipt.png)[100:160])
    files = [path for path in server.folder.rglob("*") if path.is_file()]
    assert files  # logs and the database, and nothing of the picture in them
    for path in files:
        content = path.read_bytes()
        assert not any(trace in content for trace in traces), path


def test_theme_and_language_are_kept_and_change_nothing_else(open_page: OpenPage) -> None:
    visit = open_page()
    visit.button("Settings").click()
    visit.button("Dark").click()
    visit.button("中文").click()
    visit.button("完成").click()
    background = "getComputedStyle(document.documentElement).backgroundColor"
    assert visit.page.evaluate(background) == "rgb(20, 19, 17)"
    visit.page.reload()
    assert visit.page.evaluate(background) == "rgb(20, 19, 17)"
    assert visit.page.evaluate("document.documentElement.lang") == "zh-CN"
    visit.add_pictures(RECEIPT)
    assert "$20.47" in visit.answer(visit.ask("合计是多少？"))
