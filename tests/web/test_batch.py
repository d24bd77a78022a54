"""The batch tab: one question about many pictures, over /v1/files and /v1/batches."""

from __future__ import annotations

from pathlib import Path

import openpyxl
import pytest
from playwright.sync_api import expect

from tests.gateway.serving import Server
from tests.pictures import draw_receipt
from tests.web.conftest import OpenPage, Visit


@pytest.fixture
def visit(open_page: OpenPage, server: Server) -> Visit:
    if "/v1/batches" not in server.get("/openapi.json").json()["paths"]:
        pytest.skip("this server has no /v1/batches")
    return open_page(path="/#batch")


def test_many_pictures_are_answered_and_the_table_is_downloaded(
    visit: Visit, tmp_path: Path
) -> None:
    receipts = [draw_receipt(seed) for seed in range(3)]
    visit.add_pictures(
        *(
            {"name": f"{number}.png", "mimeType": "image/png", "buffer": receipt.png}
            for number, receipt in enumerate(receipts)
        )
    )
    page = visit.page
    expect(page.locator("tbody tr")).to_have_count(3)
    page.get_by_label("Question for every picture").fill("What is the total?")
    visit.button("Exact reading").click()
    visit.button("Start").click()
    expect(page.get_by_text("Batch finished.")).to_be_visible(timeout=60_000)
    for number, receipt in enumerate(receipts):
        row = page.locator("tbody tr", has_text=f"{number}.png")
        expect(row).to_contain_text("Done")
        expect(row).to_contain_text(receipt.total)
    with page.expect_download() as csv:
        visit.button("CSV").click()
    csv.value.save_as(tmp_path / "a.csv")
    assert receipts[0].total in (tmp_path / "a.csv").read_text(encoding="utf-8-sig")
    with page.expect_download() as xlsx:
        visit.button("XLSX").click()
    xlsx.value.save_as(tmp_path / "a.xlsx")
    sheet = openpyxl.load_workbook(tmp_path / "a.xlsx").active
    assert sheet is not None
    assert [cell.value for cell in sheet["C"]] == ["Answer", *(r.total for r in receipts)]


def test_a_batch_is_taken_up_again_after_a_reload(visit: Visit) -> None:
    receipt = draw_receipt(5)
    page = visit.page
    visit.add_pictures({"name": "a.png", "mimeType": "image/png", "buffer": receipt.png})
    page.get_by_label("Question for every picture").fill("What is the total?")
    visit.button("Start").click()
    expect(visit.button("Start")).to_have_count(0)
    page.wait_for_timeout(500)
    page.reload()
    expect(page.locator("tbody tr")).to_contain_text(receipt.total, timeout=60_000)
    visit.button("New batch").click()
    expect(page.locator("tbody tr")).to_have_count(0)
