"""http(s) pictures: only from allowed hosts, only from checked addresses, only within bounds."""

from __future__ import annotations

import asyncio
import ipaddress
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest

from tests.gateway.serving import Server, example, question
from visiongate.errors import InvalidParameter, TooLarge
from visiongate.gateway.fetch import Fetcher, is_public


class _Host(BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        routes: dict[str, Any] = {
            "/a.png": lambda: self._send(200, example()),
            "/moved": lambda: self._send(302, b"", "/a.png"),
            "/away": lambda: self._send(302, b"", "http://169.254.169.254/latest/meta-data"),
            "/loop": lambda: self._send(302, b"", "/loop"),
            "/big": lambda: self._send(200, b"x" * 2_000_000),
            "/slow": self._slow,
        }
        routes.get(self.path, lambda: self._send(404, b""))()

    def _send(self, status: int, body: bytes, location: str = "") -> None:
        self.send_response(status)
        if location:
            self.send_header("Location", location)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def _slow(self) -> None:
        self.send_response(200)
        self.end_headers()
        for _ in range(100):
            self.wfile.write(b"x")
            self.wfile.flush()
            time.sleep(0.2)

    def log_message(self, *_: Any) -> None:
        pass


@pytest.fixture(scope="module")
def host() -> Iterator[str]:
    class Quiet(ThreadingHTTPServer):
        daemon_threads = True

        def handle_error(self, *_: Any) -> None:
            pass

    with Quiet(("127.0.0.1", 0), _Host) as found:
        thread = threading.Thread(target=found.serve_forever, daemon=True)
        thread.start()
        yield f"http://localhost:{found.server_address[1]}"
        found.shutdown()
        thread.join()


def fetch(url: str, *, hosts: tuple[str, ...] = ("localhost",), private: bool = True) -> bytes:
    async def story() -> bytes:
        fetcher = Fetcher(hosts=hosts, allows_private=private, limit=1_000_000)
        try:
            return await fetcher.fetch(url, param="url")
        finally:
            await fetcher.close()

    return asyncio.run(story())


def test_an_allowed_host_is_fetched_and_its_redirect_followed(host: str) -> None:
    assert fetch(f"{host}/a.png") == example()
    assert fetch(f"{host}/moved") == example()


@pytest.mark.parametrize(
    ("path", "words"),
    [("/away", "list"), ("/loop", "redirects"), ("/nothing", "404")],
)
def test_bad_answers_are_refused(host: str, path: str, words: str) -> None:
    with pytest.raises(InvalidParameter, match=words):
        fetch(f"{host}{path}")


def test_nothing_over_the_limit_is_read(host: str) -> None:
    with pytest.raises(TooLarge):
        fetch(f"{host}/big")


def test_a_slow_host_is_given_up(host: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("visiongate.gateway.fetch.TIMEOUT_SECONDS", 0.5)
    with pytest.raises(InvalidParameter, match="longer"):
        fetch(f"{host}/slow")


@pytest.mark.parametrize(
    "url",
    [
        "http://127.0.0.1/a.png",
        "http://localhost.evil.example/a.png",
        "http://localhost@evil.example/a.png",
        "http://evil.example#localhost",
        "http://evil.example\\@localhost/",
        "http://[::1]/a.png",
        "http://2130706433/",
        "http://0x7f.1/",
        "http://user:pass@localhost/",
        "ftp://localhost/",
        "http:///a.png",
    ],
)
def test_hosts_that_only_look_allowed_are_refused(url: str) -> None:
    with pytest.raises(InvalidParameter):
        fetch(url)


def test_an_allowed_name_with_a_private_address_is_refused(host: str) -> None:
    with pytest.raises(InvalidParameter, match="private address"):
        fetch(f"{host}/a.png", private=False)


@pytest.mark.parametrize(
    "address",
    [
        "10.0.0.1", "172.16.0.1", "192.168.1.1", "127.0.0.1", "169.254.169.254", "0.0.0.0",
        "100.64.0.1", "224.0.0.1", "255.255.255.255", "168.63.129.16", "::", "::1", "fe80::1",
        "fc00::1", "ff02::1", "::ffff:127.0.0.1", "::ffff:169.254.169.254", "64:ff9b::7f00:1",
        "2002:7f00:1::", "2001:0:0:0:0:0:80ff:fffe",
    ],
)  # fmt: skip
def test_no_inner_address_is_public(address: str) -> None:
    assert not is_public(ipaddress.ip_address(address))


@pytest.mark.parametrize("address", ["93.184.216.34", "2606:4700::1111", "::ffff:8.8.8.8"])
def test_public_addresses_are_public(address: str) -> None:
    assert is_public(ipaddress.ip_address(address))


def test_a_server_with_a_list_answers_about_a_url(host: str, tight_server: Server) -> None:
    body = question(b"", "What is the total?")
    body["messages"][0]["content"][0]["image_url"]["url"] = f"{host}/a.png"
    answer = tight_server.post("/v1/chat/completions", body).json()
    assert answer["choices"][0]["message"]["content"] == "$20.47"
