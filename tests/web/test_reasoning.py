"""A Thinking model's reasoning on the page: there to open, never in the answer."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from playwright.sync_api import expect

from tests.gateway.serving import Server, serve
from tests.thinking import make_thinking_model
from tests.web.conftest import EXAMPLES, OpenPage, Visit

RECEIPT = EXAMPLES / "receipt.png"
TOTAL = "What is the total?"


@pytest.fixture(scope="module")
def thinker(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    folder = tmp_path_factory.mktemp("thinker")
    model = make_thinking_model(folder / "model")
    with serve(folder, "--model", str(model)) as running:
        yield running


def test_reasoning_is_a_closed_block_above_the_answer(open_page: OpenPage, thinker: Server) -> None:
    visit = open_page(url=thinker.url)
    visit.add_pictures(RECEIPT)
    which = visit.ask(TOTAL)
    assert visit.answer(which).strip() == "47"
    block = which.locator("details.reasoning")
    thought = block.locator("p")
    expect(block.locator("summary")).to_have_text("What the model thought first")
    expect(thought).to_be_hidden()
    block.locator("summary").press("Enter")  # by keyboard, as by mouse
    expect(thought).to_be_visible()
    expect(thought).to_have_text("$20")
    above, below = block.bounding_box(), which.locator(".answer").bounding_box()
    assert above is not None
    assert below is not None
    assert above["y"] + above["height"] <= below["y"]


def test_reasoning_is_kept_with_the_conversation_and_not_sent_again(
    open_page: OpenPage, thinker: Server
) -> None:
    visit = open_page(url=thinker.url, language="zh-CN")
    visit.add_pictures(RECEIPT)
    visit.answer(visit.ask(TOTAL))
    visit.page.reload()
    which = visit.rounds().first
    expect(which.locator("details.reasoning summary")).to_have_text("思考过程")
    visit.answer(visit.ask("What is the store name?"))
    assert "$20" not in str(visit.posts()[-1])


def test_an_answer_without_reasoning_has_no_such_block(visit: Visit) -> None:
    visit.add_pictures(RECEIPT)
    which = visit.ask(TOTAL)
    assert "20.47" in visit.answer(which)
    expect(which.locator("details.reasoning")).to_have_count(0)
