"""The OpenAPI document against the running server: no 500, no body that the schema lacks."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import pytest
import schemathesis
from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st
from schemathesis import checks
from schemathesis.core.failures import FailureGroup
from schemathesis.specs.openapi import checks as openapi_checks

from tests.gateway.serving import ROOT, Server

CHECKS = [
    checks.not_a_server_error,
    openapi_checks.status_code_conformance,
    openapi_checks.content_type_conformance,
    openapi_checks.response_schema_conformance,
]

SLOW = ("/api/status/stream",)
"""Endless streams; they have tests of their own."""


def _document(server: Server) -> dict[str, Any]:
    document: dict[str, Any] = server.get("/openapi.json").json()
    for path in SLOW:
        document["paths"].pop(path, None)
    return document


def test_hostile_requests_meet_no_500_and_no_unknown_shape(server: Server) -> None:
    schema = schemathesis.openapi.from_dict(_document(server))
    schema.config.update(base_url=server.url)
    found: list[str] = []
    for result in schema.get_all_operations():
        operation: Any = result
        operation = operation.ok()

        @settings(
            max_examples=12,
            deadline=None,
            derandomize=True,
            database=None,
            phases=[Phase.explicit, Phase.generate],
            suppress_health_check=list(HealthCheck),
        )
        @_given(operation)
        def attack(case: Any) -> None:
            if isinstance(case.body, dict):
                case.body.pop("stream", None)
            response = case.call(base_url=server.url, timeout=30)
            if response.status_code >= 500 and response.status_code not in {503, 504}:
                found.append(f"{case.method} {case.path}: {response.status_code}")
            if response.status_code >= 400:
                _check_error(case.path, json.loads(response.content))
            try:
                case.validate_response(response, checks=CHECKS)
            except FailureGroup as group:
                found.extend(f"{case.method} {case.path}: {e}" for e in group.exceptions)

        attack()
    assert not found, "\n".join(sorted(set(found)))[:6000]


def _given(operation: Any) -> Callable[[Callable[..., None]], Callable[[], None]]:
    from hypothesis import given

    found: Callable[[Callable[..., None]], Callable[[], None]] = given(case=operation.as_strategy())
    return found


def _check_error(path: str, body: Any) -> None:
    if path.startswith("/health"):
        assert body["status"] in {"loading", "degraded", "unhealthy"} or "error" in body
    elif path.startswith("/v1/messages"):
        assert body["type"] == "error"
    elif path.startswith("/v1/"):
        assert set(body["error"]) == {"message", "type", "param", "code"}
    else:
        assert isinstance(body["error"], str)


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=20),
    lambda inner: (
        st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=12), inner, max_size=4)
    ),
    max_leaves=12,
)


@pytest.mark.parametrize(
    "path",
    ["/v1/chat/completions", "/api/chat", "/api/batch", "/v1/responses", "/v1/messages",
     "/v1/images/plan", "/v1/batches"],
)  # fmt: skip
def test_any_json_at_all_gets_an_error_of_the_right_shape(server: Server, path: str) -> None:
    from hypothesis import given

    @settings(max_examples=25, deadline=None, derandomize=True, database=None)
    @given(JSON)
    def attack(body: Any) -> None:
        answer = server.post(path, data=json.dumps(body), headers=_JSON)
        assert answer.status_code in {200, 400, 404}, answer.text
        if answer.status_code != 200:
            _check_error(path, answer.json())

    attack()


def test_the_committed_document_is_the_servers(server: Server) -> None:
    """docs/openapi.json is made by `python scripts/docs.py`."""
    committed = json.loads((ROOT / "docs" / "openapi.json").read_text(encoding="utf-8"))
    assert committed == server.get("/openapi.json").json()


_JSON = {"Content-Type": "application/json"}
