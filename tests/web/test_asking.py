"""Asking about pictures: getting them in, sending, streaming, and what can be done with answers."""

from __future__ import annotations

import io
import re
import threading
from pathlib import Path
from typing import Any

import pytest
import requests
from PIL import Image
from playwright.sync_api import expect

from tests.gateway.serving import Server, example
from tests.pictures import draw_receipt, to_bytes
from tests.web.conftest import EXAMPLES, OTHER_NAME, OpenPage, Visit, lengthen

RECEIPT = EXAMPLES / "receipt.png"


def payload(name: str, data: bytes, kind: str = "image/png") -> dict[str, Any]:
    return {"name": name, "mimeType": kind, "buffer": data}


# Two clicks


@pytest.mark.parametrize(
    ("language", "task", "send", "truth"),
    [
        ("en-US", "Receipt amounts", "Send", "Total: $20.47"),
        ("en-US", "ID expiry date", "Send", "2027-05-11"),
        ("en-US", "Chart", "Send", "Apr (73)"),
        ("zh-CN", "表格", "发送", "Backpack"),
        ("zh-CN", "找按钮", "发送", "Submit"),
        ("zh-CN", "一句话摘要", "发送", "红色圆形"),
    ],
)
def test_a_first_visitor_gets_a_true_answer_with_two_clicks(
    open_page: OpenPage, language: str, task: str, send: str, truth: str
) -> None:
    visit = open_page(language=language)
    visit.page.locator(".sample", has_text=task).first.click()
    visit.button(send).click()
    assert truth in visit.answer(visit.rounds().first)


def test_the_demonstration_model_says_what_it_is_and_how_to_start_the_real_ones(
    visit: Visit,
) -> None:
    notice = visit.page.locator(".demo")
    assert "demonstration model" in notice.inner_text()
    assert "visiongate serve --preset cpu" in notice.inner_text()
    assert "visiongate serve --preset pro" in notice.inner_text()


# Pictures


def test_a_chosen_picture_shows_at_once_and_is_understood(visit: Visit) -> None:
    receipt = draw_receipt(7)
    visit.add_pictures(payload("mine.png", receipt.png))
    expect(visit.page.get_by_role("img", name="mine.png")).to_be_visible()
    answer = visit.answer(visit.ask("What is the total?"))
    assert receipt.total in answer
    # The question went with its picture, which now stands in the conversation.
    expect(visit.rounds().first.get_by_role("img", name="mine.png")).to_be_visible()


def test_the_camera_button_opens_the_file_chooser(visit: Visit) -> None:
    with visit.page.expect_file_chooser() as chooser:
        visit.page.locator(".zone").press("Enter")
    assert chooser.value.is_multiple()


def test_several_pictures_go_with_one_question(visit: Visit) -> None:
    visit.add_pictures(RECEIPT, EXAMPLES / "menu.png")
    expect(visit.page.locator(".thumb img")).to_have_count(2)
    visit.answer(visit.ask("What is the total?"))
    (sent,) = visit.posts()
    kinds = [part["type"] for part in sent["messages"][0]["content"]]
    assert kinds == ["image_url", "image_url", "text"]


def test_a_dropped_picture_is_taken(visit: Visit) -> None:
    session = visit.page.context.new_cdp_session(visit.page)
    data = {"items": [], "files": [str(RECEIPT)], "dragOperationsMask": 1}
    for step in ("dragEnter", "dragOver", "drop"):
        session.send("Input.dispatchDragEvent", {"type": step, "x": 700, "y": 500, "data": data})
    expect(visit.page.get_by_role("img", name="receipt.png")).to_be_visible()


def test_a_pasted_picture_is_taken(visit: Visit) -> None:
    visit.page.context.grant_permissions(["clipboard-read", "clipboard-write"])
    visit.page.evaluate(
        """async (url) => {
          const blob = await (await fetch(url)).blob();
          await navigator.clipboard.write([new ClipboardItem({"image/png": blob})]);
        }""",
        "/samples/receipt.png",
    )
    visit.page.locator("#question").focus()
    visit.page.keyboard.press("Control+V")
    expect(visit.page.locator(".thumb img")).to_have_count(1)


def test_a_photo_is_taken_with_the_camera(visit: Visit) -> None:
    visit.button("Take a photo").click()
    visit.page.wait_for_timeout(800)
    visit.button("Take picture").click()
    expect(visit.page.get_by_role("img", name="photo.jpg")).to_be_visible()


def test_without_a_trusted_connection_the_phones_own_camera_is_offered(
    open_page: OpenPage, server: Server
) -> None:
    visit = open_page(url=server.url.replace("127.0.0.1", OTHER_NAME))
    assert visit.page.evaluate("navigator.mediaDevices") is None
    visit.button("Take a photo").click()
    assert visit.page.locator("input[capture=environment]").count() == 1


@pytest.mark.parametrize(
    ("name", "data", "words"),
    [
        ("notes.png", b"these are only words, whatever the name says", "is not a picture"),
        ("empty.jpg", b"", "is empty"),
        (
            "huge.png",
            example() + bytes(10 * 1024 * 1024),
            "has 10 MB; a picture may have up to 10 MB",
        ),
    ],
)
def test_a_picture_that_cannot_work_is_refused_in_words_before_the_upload(
    visit: Visit, tmp_path: Path, name: str, data: bytes, words: str
) -> None:
    (tmp_path / name).write_bytes(data)
    visit.add_pictures(tmp_path / name)
    alert = visit.page.get_by_role("alert")
    expect(alert).to_contain_text(words)
    expect(alert).to_contain_text(name)
    assert visit.page.locator(".thumb").count() == 0
    assert all(request.method == "GET" for request in visit.requests)


def test_a_chosen_picture_tells_what_it_will_cost(visit: Visit) -> None:
    visit.add_pictures(RECEIPT)
    expect(visit.page.locator(".plan")).to_contain_text("266 visual tokens")


def test_a_damaged_picture_is_known_before_the_question_is_sent(
    visit: Visit, tmp_path: Path
) -> None:
    visit.expects_failures = True  # the browser logs the 400
    damaged = tmp_path / "damaged.png"
    damaged.write_bytes(example()[:20])
    visit.add_pictures(damaged)
    expect(visit.page.locator(".problem")).not_to_be_empty()


def test_a_large_picture_is_taken_with_advice(visit: Visit, tmp_path: Path) -> None:
    (tmp_path / "large.png").write_bytes(example() + bytes(6 * 1024 * 1024))
    visit.add_pictures(tmp_path / "large.png")
    expect(visit.page.locator(".advice")).to_contain_text("below 5 MB answers sooner")


def test_a_long_narrow_strip_is_taken_with_advice(visit: Visit) -> None:
    visit.add_pictures(payload("strip.png", to_bytes(Image.new("RGB", (1200, 60), "white"))))
    expect(visit.page.locator(".advice")).to_contain_text("small text may be lost")


@pytest.mark.parametrize("kind", ["JPEG", "BMP", "WEBP"])
def test_other_formats_are_shown_and_understood(visit: Visit, kind: str) -> None:
    receipt = draw_receipt(11)
    data = to_bytes(Image.open(io.BytesIO(receipt.png)), kind)
    visit.add_pictures(payload(f"r.{kind.lower()}", data, f"image/{kind.lower()}"))
    expect(visit.page.locator(".thumb img")).to_have_count(1)
    assert receipt.total in visit.answer(visit.ask("What is the total?"))


def test_the_preview_of_a_turned_photo_is_upright(visit: Visit) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6  # turned a quarter
    data = to_bytes(Image.new("RGB", (400, 200), "teal"), "JPEG", exif=exif)
    visit.add_pictures(payload("turned.jpg", data, "image/jpeg"))
    thumb = visit.page.locator(".thumb img")
    thumb.wait_for()
    size = thumb.evaluate(
        "async (img) => (await img.decode(), [img.naturalWidth, img.naturalHeight])"
    )
    assert size[0] < size[1]
    expect(visit.page.locator(".size")).to_contain_text("200 × 400 · 2 kB")


# Sending


def test_enter_sends_shift_enter_breaks_the_line_and_an_input_methods_enter_does_neither(
    visit: Visit,
) -> None:
    area = visit.page.locator("#question")
    area.fill("第一行")
    for composing in ({"isComposing": True}, {"keyCode": 229}):
        event = {"key": "Enter", "bubbles": True, "cancelable": True, **composing}
        area.dispatch_event("keydown", event)
    assert visit.rounds().count() == 0
    area.press("Shift+Enter")
    assert area.input_value() == "第一行\n"
    area.press("Enter")
    expect(visit.rounds()).to_have_count(1)
    visit.answer(visit.rounds().first)


def test_while_an_answer_runs_the_input_is_grey_says_thinking_and_sends_nothing_more(
    open_page: OpenPage,
) -> None:
    visit = open_page(language="zh-CN")
    visit.add_pictures(RECEIPT)
    lengthen(visit)
    visit.ask("合计是多少？")
    thinking = visit.page.get_by_text("思考中…").last
    thinking.wait_for()
    expect(visit.page.locator("#question")).to_be_disabled()
    box = visit.page.locator(".composer .box").bounding_box()
    place = visit.page.locator(".thinking").bounding_box()
    assert box is not None
    assert place is not None
    assert place["x"] + place["width"] / 2 > box["x"] + box["width"] / 2  # at the right
    assert place["y"] + place["height"] / 2 > box["y"] + box["height"] / 2  # below
    visit.page.keyboard.press("Enter")
    visit.page.locator("form").dispatch_event("submit")
    visit.button("停止").click()
    visit.answer(visit.rounds().first)
    assert len(visit.posts()) == 1
    assert visit.rounds().count() == 1


def test_the_answer_grows_while_it_is_written_and_can_be_stopped(
    visit: Visit, server: Server
) -> None:
    visit.add_pictures(RECEIPT)
    lengthen(visit, numbers=900)
    which = visit.ask("What is the total?")
    text = which.locator(".blocks")
    text.wait_for(timeout=60_000)
    first = len(text.inner_text())
    visit.page.wait_for_timeout(400)
    second = len(text.inner_text())
    assert first < second
    visit.button("Stop").click()
    assert "Stopped." in visit.answer(which)
    kept = len(text.inner_text())
    assert kept >= second
    # The server notices within a moment and the light is green again.
    visit.page.locator("[data-light='green']").first.wait_for()
    assert server.get("/api/status").json()["queue"]["running"] == 0


def test_a_question_sent_before_the_picture_is_ready_waits_for_it(open_page: OpenPage) -> None:
    slow = """
    const original = window.createImageBitmap;
    window.createImageBitmap = async (...args) => {
      await new Promise((resolve) => setTimeout(resolve, 1200));
      return original(...args);
    };
    """
    visit = open_page(scripts=(slow,))
    visit.add_pictures(RECEIPT)
    which = visit.ask("What is the total?")
    expect(which).to_contain_text("Preparing the picture…")
    assert visit.posts() == []
    assert "$20.47" in visit.answer(which)


def test_a_waiting_question_shows_its_place_in_the_queue(visit: Visit, server: Server) -> None:
    items = {"type": "array", "items": {"type": "integer"}, "minItems": 700}
    form = {"type": "json_schema", "json_schema": {"name": "long", "schema": items}}
    body = {
        "messages": [{"role": "user", "content": "count"}],
        "response_format": form,
        "max_tokens": 1800,
        "repetition_guard": False,
    }
    leave = threading.Event()

    def occupy() -> None:
        url = f"{server.url}/v1/chat/completions"
        with requests.post(url, json=body | {"stream": True}, stream=True, timeout=60) as busy:
            for _ in busy.iter_content(256):
                if leave.is_set():
                    return

    others = [threading.Thread(target=occupy) for _ in range(3)]
    for other in others:
        other.start()
    visit.page.locator("[data-light='blue']").first.wait_for()
    visit.page.wait_for_timeout(600)
    visit.add_pictures(RECEIPT)
    which = visit.ask("What is the total?")
    expect(which).to_contain_text("In the queue, position 1")
    leave.set()
    for other in others:
        other.join()
    assert "$20.47" in visit.answer(which)


def test_a_follow_up_uses_the_earlier_picture_without_sending_it_again(visit: Visit) -> None:
    visit.add_pictures(RECEIPT)
    visit.answer(visit.ask("What is the store name?"))
    assert "$2.75" in visit.answer(visit.ask("How much is the Milk?"))
    first, second = visit.posts()
    assert first["session_id"] == ""
    assert second["session_id"].startswith("sess_")
    assert [part["type"] for part in second["messages"][-1]["content"]] == ["text"]
    assert len(second["messages"]) == 1


def test_a_forgotten_session_is_opened_again_with_the_whole_conversation(
    visit: Visit, server: Server
) -> None:
    visit.expects_failures = True  # the browser logs the 404
    visit.add_pictures(RECEIPT)
    visit.answer(visit.ask("What is the store name?"))
    visit.answer(visit.ask("What is the date?"))
    session = visit.posts()[-1]["session_id"]
    assert server.post(f"/api/sessions/{session}").status_code == 405
    assert requests.delete(f"{server.url}/api/sessions/{session}", timeout=10).ok
    assert "$2.75" in visit.answer(visit.ask("How much is the Milk?"))
    assert len(visit.posts()[-1]["messages"]) == 5


# Answers


def test_the_plain_answer_is_copied(visit: Visit) -> None:
    visit.page.context.grant_permissions(["clipboard-read", "clipboard-write"])
    visit.add_pictures(EXAMPLES / "table.png")
    visit.answer(visit.ask("Give this table as Markdown."))
    visit.button("Copy answer").click()
    expect(visit.button("Copied")).to_be_visible()
    copied = visit.page.evaluate("navigator.clipboard.readText()")
    assert copied.splitlines()[0].split("\t") == ["Product", "Price", "Stock"]
    assert "Backpack\t45.00\t17" in copied


def test_the_answer_is_copied_on_plain_http_too(open_page: OpenPage, server: Server) -> None:
    visit = open_page(url=server.url.replace("127.0.0.1", OTHER_NAME), language="zh-CN")
    assert visit.page.evaluate("[isSecureContext, navigator.clipboard === undefined]") == [
        False,
        True,
    ]
    visit.add_pictures(RECEIPT)
    visit.answer(visit.ask("合计是多少？"))
    visit.button("复制回答").click()
    expect(visit.button("已复制")).to_be_visible()
    visit.page.locator("#question").focus()
    visit.page.keyboard.press("Control+V")
    assert visit.page.locator("#question").input_value() == "$20.47"


def test_a_table_is_a_table_and_is_copied_as_csv(visit: Visit) -> None:
    visit.page.context.grant_permissions(["clipboard-read", "clipboard-write"])
    visit.add_pictures(EXAMPLES / "table.png")
    which = visit.ask("Give this table as Markdown.")
    visit.answer(which)
    expect(which.get_by_role("columnheader", name="Stock")).to_be_visible()
    visit.button("Copy as CSV").click()
    visit.page.wait_for_timeout(200)
    assert "Pencil,1.20,340" in visit.page.evaluate("navigator.clipboard.readText()")


def test_boxes_are_drawn_over_the_original_where_the_answer_puts_them(visit: Visit) -> None:
    visit.add_pictures(EXAMPLES / "shapes.png")
    which = visit.ask("Detect the red circle. Return bbox_2d JSON.")
    visit.answer(which)
    numbers = re.search(r"\[(\d+), ?(\d+), ?(\d+), ?(\d+)\]", which.locator(".answer").inner_text())
    assert numbers is not None
    x1, y1, x2, y2 = (int(number) / 1000 for number in numbers.groups())
    which.locator(".picture img").scroll_into_view_if_needed()
    box = which.locator(".picture .box").bounding_box()
    picture = which.locator(".picture img").bounding_box()
    assert box is not None
    assert picture is not None
    assert box["x"] == pytest.approx(picture["x"] + x1 * picture["width"], abs=4)
    assert box["y"] == pytest.approx(picture["y"] + y1 * picture["height"], abs=4)
    assert box["width"] == pytest.approx((x2 - x1) * picture["width"], abs=4)
    assert box["height"] == pytest.approx((y2 - y1) * picture["height"], abs=4)
    # Text, list and box point at each other.
    which.locator("figcaption .button").hover()
    expect(which.locator(".picture .box")).to_have_class(re.compile("lit"))
    which.locator("tbody tr").hover()
    expect(which.locator(".picture .box")).to_have_class(re.compile("lit"))


def test_a_picture_can_be_enlarged_zoomed_and_closed_by_keyboard(visit: Visit) -> None:
    visit.add_pictures(RECEIPT)
    visit.answer(visit.ask("What is the total?"))
    visit.button("Enlarge receipt.png").press("Enter")
    sheet = visit.page.locator(".sheet")
    expect(sheet).to_have_css("width", "480px")
    visit.page.keyboard.press("+")
    expect(sheet).to_have_css("width", "624px")
    visit.page.keyboard.press("0")
    visit.page.keyboard.press("ArrowLeft")
    expect(sheet).to_have_css("translate", "calc(-50% + 60px) -50%")
    visit.page.keyboard.press("Escape")
    expect(sheet).to_have_count(0)


def test_an_answer_can_be_asked_for_again_and_a_question_changed(visit: Visit) -> None:
    visit.add_pictures(RECEIPT)
    visit.answer(visit.ask("What is the date?"))
    visit.button("Answer again").click()
    assert "2026-03-14" in visit.answer(visit.rounds().first)
    visit.button("Edit and resend").click()
    visit.page.get_by_role("textbox", name="Edit and resend").fill("What is the store name?")
    visit.page.keyboard.press("Enter")
    assert "Harbor Market" in visit.answer(visit.rounds().first)
    assert visit.rounds().count() == 1


def test_the_receipt_tells_what_the_model_saw(visit: Visit) -> None:
    visit.add_pictures(RECEIPT)
    visit.answer(visit.ask("What is the total?"))
    visit.button("Receipt").click()
    receipt = visit.page.get_by_role("region", name="What the model saw")
    with Image.open(RECEIPT) as picture:
        expect(receipt).to_contain_text(f"{picture.width} × {picture.height}")
    expect(receipt).to_contain_text("Visual tokens")
    expect(receipt).to_contain_text("First text")
    expect(visit.rounds().first.locator(".figures")).to_contain_text("tokens")


def test_an_answer_that_reaches_the_maximum_length_says_so(visit: Visit) -> None:
    visit.add_pictures(RECEIPT)
    lengthen(visit, max_tokens=40)
    assert "reached the maximum length" in visit.answer(visit.ask("What is the total?"))


def test_json_is_a_table_that_can_be_unfolded(visit: Visit) -> None:
    visit.add_pictures(RECEIPT)
    which = visit.ask("Extract the merchant, date and total as JSON.")
    visit.answer(which)
    expect(which.get_by_role("rowheader", name="merchant")).to_be_visible()
    expect(which.get_by_role("cell", name="Harbor Market")).to_be_visible()
    tree = which.get_by_role("region", name="JSON")
    expect(tree).to_be_hidden()
    which.locator("summary", has_text="JSON").first.click()
    expect(tree).to_contain_text('"merchant": "Harbor Market"')


def test_html_and_pictures_in_an_answer_are_shown_as_text(visit: Visit) -> None:
    hostile = '<img src="https://example.org/x.png" onerror="alert(1)"> ![a](https://example.org/y)'
    visit.add_pictures(RECEIPT)
    visit.answer(visit.ask("What is the total?"))
    # The answer is changed where it is kept, then shown from there.
    visit.page.evaluate(
        """(text) => new Promise((resolve) => {
          const open = indexedDB.open("visiongate");
          open.onsuccess = () => {
            const store = open.result.transaction("history", "readwrite").objectStore("history");
            const cursor = store.openCursor(IDBKeyRange.bound("c:", "c;"));
            cursor.onsuccess = () => {
              const kept = cursor.result.value;
              kept.rounds[0].answer = text;
              cursor.result.update(kept).onsuccess = resolve;
            };
          };
        })""",
        hostile,
    )
    visit.page.reload()
    text = visit.rounds().first.locator(".prose")
    expect(text).to_contain_text('<img src="https://example.org/x.png" onerror="alert(1)">')
    assert text.locator("img").count() == 0


# Controls


def test_sliders_presets_and_detail_reach_the_next_request(visit: Visit) -> None:
    temperature = visit.page.get_by_label("Temperature")
    length = visit.page.get_by_label("Maximum length")
    assert [temperature.get_attribute(name) for name in ("min", "max")] == ["0", "1"]
    assert [length.get_attribute(name) for name in ("min", "max")] == ["128", "2048"]
    assert (temperature.input_value(), length.input_value()) == ("0.5", "512")
    visit.add_pictures(RECEIPT)
    visit.button("Reasoning").click()
    visit.answer(visit.ask("What is the total?"))
    temperature.fill("0")
    length.fill("128")
    visit.button("Low").click()
    visit.add_pictures(RECEIPT)
    visit.answer(visit.ask("What is the date?"))
    first, second = visit.posts()
    assert (first["temperature"], first["max_tokens"]) == (0.4, 1024)
    assert (second["temperature"], second["max_tokens"]) == (0, 128)
    assert second["messages"][-1]["content"][0]["image_url"]["detail"] == "low"


def test_a_refused_request_says_why_in_its_round_and_can_be_tried_again(
    visit: Visit, tmp_path: Path
) -> None:
    visit.expects_failures = True  # the browser logs the 400
    damaged = tmp_path / "damaged.png"
    damaged.write_bytes(example()[:3000])
    visit.add_pictures(damaged)
    which = visit.ask("What is the total?")
    expect(which.get_by_role("alert")).to_contain_text("The request was refused")
    expect(which.get_by_role("button", name="Try again")).to_be_visible()
    # The composer is free again.
    expect(visit.page.locator("#question")).to_be_enabled()
