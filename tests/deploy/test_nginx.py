"""The shipped nginx file in a real nginx: password, TLS, streams, floods, sizes, callers."""

from __future__ import annotations

import http.client
import itertools
import json
import os
import shutil
import socket
import ssl
import subprocess
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import pytest
import requests

from tests.gateway.serving import ROOT, Server, example, question, wait_for

NGINX = shutil.which("nginx") or shutil.which("nginx", path="/usr/sbin")
OPENSSL = shutil.which("openssl")
pytestmark = pytest.mark.skipif(not (NGINX and OPENSSL), reason="needs nginx and openssl")

MAIN = """
{user}
pid {folder}/nginx.pid;
error_log {folder}/error.log warn;
worker_processes 1;
daemon off;
events {{ worker_connections 256; }}
http {{
    access_log off;
    client_body_temp_path {folder}/body;
    proxy_temp_path {folder}/proxy;
    fastcgi_temp_path {folder}/fastcgi;
    uwsgi_temp_path {folder}/uwsgi;
    scgi_temp_path {folder}/scgi;
    include {folder}/visiongate.conf;
}}
"""


@dataclass
class Front:
    """nginx in front of a server."""

    url: str
    plain_url: str
    certificate: Path
    server: Server
    folder: Path

    def request(
        self, method: str, path: str, *, password: str | None = "secret", **options: object
    ) -> requests.Response:
        return requests.request(
            method,
            self.url + path,
            auth=("team", password) if password else None,
            verify=str(self.certificate),
            timeout=60,
            **options,  # type: ignore[arg-type]
        )


@pytest.fixture(scope="module")
def front(server: Server, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Front]:
    folder = tmp_path_factory.mktemp("nginx")
    key, certificate = folder / "privkey.pem", folder / "fullchain.pem"
    words = ["req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2"]
    subject = ["-subj", "/CN=localhost", "-addext", "subjectAltName=DNS:localhost,IP:127.0.0.1"]
    subprocess.run(
        [str(OPENSSL), *words, "-keyout", str(key), "-out", str(certificate), *subject],
        check=True,
        capture_output=True,
    )
    (folder / "htpasswd").write_text("team:{PLAIN}secret\n")
    tls_port, plain_port = _free_port(), _free_port()
    (folder / "upstream").write_text(f"server {server.url.removeprefix('http://')};\n")
    _write_config(folder, tls_port, plain_port)
    config = str(folder / "nginx.conf")
    tested = subprocess.run(
        [str(NGINX), "-t", "-c", config, "-e", str(folder / "error.log")],
        capture_output=True,
        text=True,
        check=False,
    )
    assert tested.returncode == 0, tested.stderr
    process = subprocess.Popen([str(NGINX), "-c", config, "-e", str(folder / "error.log")])
    try:
        wait_for(lambda: _is_open(tls_port))
        urls = f"https://localhost:{tls_port}", f"http://localhost:{plain_port}"
        yield Front(*urls, certificate, server, folder)
    finally:
        process.terminate()
        process.wait(10)


def _write_config(folder: Path, tls_port: int, plain_port: int) -> None:
    """The shipped file with this test's ports and paths, and nothing else changed."""
    text = (ROOT / "deploy/nginx/visiongate.conf").read_text(encoding="utf-8")
    for old, new in (
        ("listen 443 ", f"listen 127.0.0.1:{tls_port} "),
        ("listen 80;", f"listen 127.0.0.1:{plain_port};"),
        ("/etc/nginx/tls/", f"{folder}/"),
        (
            "auth_basic_user_file /etc/nginx/visiongate.htpasswd",
            f"auth_basic_user_file {folder}/htpasswd",
        ),
        ("include /etc/nginx/visiongate.upstream", f"include {folder}/upstream"),
    ):
        assert old in text
        text = text.replace(old, new)
    (folder / "visiongate.conf").write_text(text)
    user = "user root;" if os.geteuid() == 0 else ""
    (folder / "nginx.conf").write_text(MAIN.format(folder=folder, user=user))


def test_without_the_password_there_is_401_and_with_it_200(front: Front) -> None:
    refused = front.request("GET", "/v1/models", password=None)
    assert refused.status_code == 401
    assert 'Basic realm="Qwen-VL API"' in refused.headers["WWW-Authenticate"]
    assert front.request("GET", "/v1/models", password="wrong").status_code == 401
    assert front.request("POST", "/api/chat", password=None, json={}).status_code == 401
    time.sleep(0.6)
    assert front.request("GET", "/v1/models").status_code == 200


def test_health_needs_no_password_and_the_page_does(front: Front) -> None:
    healthy = front.request("GET", "/health", password=None)
    assert healthy.json() == {"status": "healthy"}
    assert front.request("GET", "/", password=None).status_code == 401
    assert front.request("GET", "/").status_code == 200


def test_plain_http_is_sent_to_tls(front: Front) -> None:
    moved = requests.get(front.plain_url + "/v1/models", allow_redirects=False, timeout=10)
    assert moved.status_code == 301
    assert moved.headers["Location"].startswith("https://")


def test_a_picture_is_answered_through_tls(front: Front) -> None:
    time.sleep(0.6)
    files = {"image": ("receipt.png", example(), "image/png")}
    data = {"prompt": "What is the total?"}
    answer = front.request("POST", "/v1/chat/completions", files=files, data=data)
    assert answer.status_code == 200
    assert "20.47" in answer.json()["choices"][0]["message"]["content"]


def test_a_stream_arrives_piece_by_piece_through_tls(front: Front) -> None:
    time.sleep(0.6)
    body = question(example(), "Read all the text.", stream=True, max_tokens=96)
    answer = front.request("POST", "/v1/chat/completions", json=body, stream=True)
    assert answer.status_code == 200
    arrivals = [
        time.monotonic()
        for line in answer.iter_lines(chunk_size=1)
        if line.startswith(b"data: {") and json.loads(line[6:])["choices"]
    ]
    assert len(arrivals) > 5
    # Buffered, all pieces would come within a millisecond or two.
    gaps = [later - earlier for earlier, later in itertools.pairwise(arrivals)]
    assert sum(gap > 0.002 for gap in gaps) >= 5
    assert arrivals[-1] - arrivals[0] > 0.05


def test_a_flood_is_told_to_slow_down(front: Front) -> None:
    time.sleep(1)
    with ThreadPoolExecutor(20) as pool:
        answers = list(pool.map(lambda _: front.request("GET", "/v1/models"), range(60)))
    codes = [answer.status_code for answer in answers]
    assert set(codes) == {200, 429}
    assert codes.count(200) >= 6  # one, and the burst of five
    refused = next(answer for answer in answers if answer.status_code == 429)
    assert refused.json()["error"]["code"] == "rate_limited"
    assert refused.headers["Retry-After"] == "1"
    time.sleep(1)
    assert front.request("GET", "/v1/models").status_code == 200


def test_one_byte_over_ten_megabytes_is_413(front: Front) -> None:
    time.sleep(0.6)
    picture = example() + b"\0" * (10 * 1024 * 1024 + 1 - len(example()))
    files = {"image": ("big.png", picture, "image/png")}
    data = {"prompt": "What is it?"}
    answer = front.request("POST", "/v1/chat/completions", files=files, data=data)
    assert answer.status_code == 413
    assert answer.json()["error"]["code"] == "too_large"


def test_a_body_over_the_limit_of_the_proxy_is_413_at_once(front: Front) -> None:
    host = front.url.removeprefix("https://")
    context = ssl.create_default_context(cafile=str(front.certificate))
    connection = http.client.HTTPSConnection(host, timeout=10, context=context)
    connection.putrequest("POST", "/v1/chat/completions")
    connection.putheader("Authorization", requests.auth._basic_auth_str("team", "secret"))
    connection.putheader("Content-Length", str(65 * 1024 * 1024))
    connection.endheaders()
    assert connection.getresponse().status == 413
    connection.close()


def test_the_log_names_the_caller_and_not_the_proxy(front: Front) -> None:
    host = front.url.removeprefix("https://").replace("localhost", "127.0.0.1")
    context = ssl.create_default_context(cafile=str(front.certificate))
    connection = http.client.HTTPSConnection(
        host, timeout=10, context=context, source_address=("127.0.0.9", 0)
    )
    connection.request("GET", "/health", headers={"X-Request-ID": "from-nine"})
    assert connection.getresponse().status == 200
    connection.close()
    assert " 127.0.0.9 " in front.server.access_line("from-nine")


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def _is_open(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0
