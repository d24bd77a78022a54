"""One server for most tests: the embedded model, no keys, the defaults."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.gateway.serving import Server, serve


@pytest.fixture(scope="session")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    with serve(tmp_path_factory.mktemp("server")) as found:
        yield found


@pytest.fixture(scope="session")
def slow_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """A server with little patience for slow uploads, two keys and small limits."""
    with serve(
        tmp_path_factory.mktemp("slow"), VISIONGATE_UPLOAD_SECONDS="2", MAX_CONCURRENCY="1"
    ) as found:
        yield found
