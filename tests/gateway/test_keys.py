"""Who may call what: every route and method, with no key, a wrong one, the right one, another's."""

from __future__ import annotations

import base64
import socket
from collections.abc import Callable
from typing import Any

import pytest
import requests

from tests.gateway.conftest import ADMIN_KEY
from tests.gateway.serving import Server, base64_of, command, example, wait_for
from visiongate.gateway.auth import PUBLIC_PATHS

TOTAL = "What is the total?"
Make = Callable[..., str]


def bearer(key: str) -> dict[str, str]:
    return {"Authorization": f"Bearer {key}"}


def routes(server: Server) -> list[tuple[str, str]]:
    """Every method and path of the OpenAPI document, with identifiers filled in."""
    document = server.get("/openapi.json").json()
    return [
        (
            method.upper(),
            path.replace("{session_id}", "sess_x")
            .replace("{name}", "x")
            .replace("{file_id}", "file-x")
            .replace("{batch_id}", "batch_x"),
        )
        for path, methods in document["paths"].items()
        for method in methods
    ]


def test_every_route_is_closed_unless_it_is_listed_as_public(keyed_server: Server) -> None:
    found = routes(keyed_server)
    assert len(found) > 20
    for method, path in found:
        if path == "/api/status/stream":
            continue  # public and endless
        for headers in ({}, bearer("wrong"), {"Authorization": "Basic !!!"}, {"X-API-Key": ""}):
            answer = requests.request(method, keyed_server.url + path, headers=headers, timeout=20)
            expected = path not in PUBLIC_PATHS
            assert (answer.status_code == 401) == expected, (method, path, headers)
            if expected:
                assert "Bearer" in answer.headers["WWW-Authenticate"]
                _check_shape(path, answer.json())
        right = requests.request(
            method, keyed_server.url + path, headers=bearer(ADMIN_KEY), timeout=20
        )
        assert right.status_code not in {401, 403, 405, 500}, (method, path, right.text)
        assert right.headers["X-Request-ID"]


def _check_shape(path: str, body: Any) -> None:
    if path.startswith("/v1/messages"):
        assert body["type"] == "error"
    elif path.startswith("/v1/"):
        assert set(body["error"]) == {"message", "type", "param", "code"}
    else:
        assert isinstance(body["error"], str)


def test_unknown_paths_need_a_key_too(keyed_server: Server) -> None:
    assert keyed_server.get("/secret").status_code == 401
    assert keyed_server.get("/secret", headers=bearer(ADMIN_KEY)).status_code == 404


@pytest.mark.parametrize("kind", ["bearer", "basic", "x-api-key"])
def test_a_key_is_taken_in_three_ways(keyed_server: Server, kind: str) -> None:
    basic = base64.b64encode(f"anyone:{ADMIN_KEY}".encode()).decode()
    headers = {
        "bearer": bearer(ADMIN_KEY),
        "basic": {"Authorization": f"Basic {basic}"},
        "x-api-key": {"X-API-Key": ADMIN_KEY},
    }[kind]
    assert keyed_server.get("/v1/models", headers=headers).status_code == 200


def test_hosts_slashes_and_dots_change_nothing(keyed_server: Server) -> None:
    """The decision is made on the path that the router sees."""
    host, port = keyed_server.url.removeprefix("http://").split(":")
    for target in (
        "//v1/models", "/v1//models", "/v1/models/", "/./v1/models", "/health/../v1/models",
        "/%76%31/models", "/assets/../v1/models", "/v1/models?x=/health", "/V1/MODELS",
        f"http://{host}:{port}/v1/models", "/docs/../metrics", "/health/details",
    ):  # fmt: skip
        for name in ("localhost", "evil.example", "127.0.0.1:1", ""):
            with socket.create_connection((host, int(port)), timeout=10) as wire:
                wire.sendall(f"GET {target} HTTP/1.1\r\nHost: {name}\r\n\r\n".encode())
                status = int(wire.recv(4096).split()[1])
            assert status in {400, 401, 404}, (target, name, status)


def test_another_keys_things_are_not_found(keyed_server: Server, make_key: Make) -> None:
    mine, theirs = bearer(make_key("--name", "mine")), bearer(make_key("--name", "theirs"))
    body = {"image": base64_of(example()), "prompt": TOTAL}
    session = keyed_server.post("/api/chat", body, headers=mine).json()["session_id"]
    file = keyed_server.post(
        "/v1/files",
        files={"file": ("a.jsonl", b'{"custom_id":"a","body":{}}\n'), "purpose": (None, "batch")},
        headers=mine,
    ).json()["id"]
    wish = {"input_file_id": file, "endpoint": "/api/chat"}
    batch = keyed_server.post("/v1/batches", wish, headers=mine).json()["id"]
    for path in (f"/api/sessions/{session}", f"/v1/files/{file}", f"/v1/batches/{batch}"):
        assert keyed_server.get(path, headers=theirs).status_code == 404
        assert keyed_server.get(path, headers=mine).status_code == 200
    follow_up = {"session_id": session, "prompt": "What is the date?"}
    assert keyed_server.post("/api/chat", follow_up, headers=theirs).status_code == 404
    answer = keyed_server.post("/api/chat", follow_up, headers=mine).json()
    assert answer["response"] == "2026-03-14"
    assert keyed_server.post("/v1/batches", wish, headers=theirs).status_code == 404
    cancel = f"/v1/batches/{batch}/cancel"
    assert keyed_server.post(cancel, headers=theirs).status_code == 404
    content = f"/v1/files/{file}/content"
    assert keyed_server.get(content, headers=theirs).status_code == 404
    path = f"/api/sessions/{session}"
    assert requests.delete(keyed_server.url + path, headers=theirs, timeout=10).status_code == 404


def test_prefixes_are_not_shared_between_keys(keyed_server: Server, make_key: Make) -> None:
    first, second = (bearer(make_key()) for _ in range(2))
    body = {"image": base64_of(example("menu.png")), "prompt": "What is this?", "max_tokens": 2}

    def cached(headers: dict[str, str]) -> int:
        usage = keyed_server.post("/api/chat", body, headers=headers).json()["usage"]
        return int(usage["prompt_tokens_details"]["cached_tokens"])

    cached(first)
    assert cached(first) > 0
    assert cached(second) == 0


def test_scopes_bound_a_key(keyed_server: Server, make_key: Make) -> None:
    chat = bearer(make_key("--scopes", "chat"))
    assert keyed_server.get("/v1/models", headers=chat).status_code == 200
    for path in ("/v1/files", "/v1/batches", "/metrics", "/health/details"):
        answer = keyed_server.get(path, headers=chat)
        assert answer.status_code == 403, path
    assert keyed_server.post("/api/batch", [], headers=chat).status_code == 403


def test_a_rate_is_kept_and_says_when_to_come_back(keyed_server: Server, make_key: Make) -> None:
    headers = bearer(make_key("--rate", "3"))
    codes = [keyed_server.get("/v1/models", headers=headers).status_code for _ in range(5)]
    assert codes == [200, 200, 200, 429, 429]
    answer = keyed_server.get("/v1/models", headers=headers)
    assert 1 <= int(answer.headers["Retry-After"]) <= 60


def test_a_quota_of_tokens_is_kept(keyed_server: Server, make_key: Make) -> None:
    headers = bearer(make_key("--quota", "100"))
    body = {"image": base64_of(example()), "prompt": TOTAL}
    assert keyed_server.post("/api/chat", body, headers=headers).status_code == 200
    answer = keyed_server.post("/api/chat", body, headers=headers)
    assert answer.status_code == 429
    assert "100 tokens" in answer.json()["error"]


def test_a_revoked_key_ends_at_once(keyed_server: Server, make_key: Make) -> None:
    key = make_key("--name", "leaver")
    assert keyed_server.get("/v1/models", headers=bearer(key)).status_code == 200
    command(keyed_server.folder, "keys", "revoke", "leaver")
    assert keyed_server.get("/v1/models", headers=bearer(key)).status_code == 401
    assert "revoked" in command(keyed_server.folder, "keys", "list")


def test_no_key_is_stored_or_logged(keyed_server: Server, make_key: Make) -> None:
    key = make_key("--name", "secret")
    keyed_server.get(f"/v1/models?api_key={key}", headers=bearer(key))
    wait_for(lambda: "/v1/models" in keyed_server.log("api_access.log"))
    for file in keyed_server.folder.rglob("*"):
        if file.is_file():
            assert key.encode() not in file.read_bytes(), file
    assert key not in "".join(keyed_server.lines)


def test_cors_answers_only_the_origins_that_were_named(keyed_server: Server) -> None:
    asked = {"Access-Control-Request-Method": "POST"}
    for origin, is_allowed in (("https://shop.example", True), ("https://evil.example", False)):
        answer = requests.options(
            f"{keyed_server.url}/api/chat", headers={"Origin": origin, **asked}, timeout=10
        )
        assert ("access-control-allow-origin" in answer.headers) == is_allowed


def test_cors_is_off_by_default(server: Server) -> None:
    answer = server.get("/v1/models", headers={"Origin": "https://shop.example"})
    assert "access-control-allow-origin" not in answer.headers


def test_listening_beyond_loopback_needs_a_key_or_a_word(tmp_path: Any) -> None:
    text = command(tmp_path, "serve", "--host", "0.0.0.0", "--port", "0", status=2)
    assert "refusing to listen" in text
    assert "--insecure" in text


def test_the_page_shows_less_without_a_key(keyed_server: Server) -> None:
    without = keyed_server.get("/api/status").json()
    assert without["auth"] == "key"
    assert "workers" not in without
    assert "workers" in keyed_server.get("/api/status", headers=bearer(ADMIN_KEY)).json()
