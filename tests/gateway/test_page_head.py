"""HEAD on what a browser or a monitor reads: GET's headers and no body."""

from __future__ import annotations

import pytest
import requests

from tests.gateway.serving import Server


@pytest.mark.parametrize(
    "path", ["/", "/samples/index.json", "/samples/receipt.png", "/favicon.ico"]
)
def test_head_is_get_without_a_body(server: Server, path: str) -> None:
    got = server.get(path)
    asked = requests.head(server.url + path, timeout=30)
    assert asked.status_code == got.status_code
    for name in ("content-type", "content-length", "cache-control"):
        assert asked.headers.get(name) == got.headers.get(name)
    assert asked.content == b""
    assert server.get(path).status_code == got.status_code  # the connection is not confused


def test_head_of_a_file_that_is_not_there_is_404(server: Server) -> None:
    assert requests.head(f"{server.url}/samples/none.png", timeout=30).status_code == 404
