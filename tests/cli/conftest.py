"""One server for the commands that talk to one."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.gateway.serving import Server, serve


@pytest.fixture(scope="session")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    with serve(tmp_path_factory.mktemp("server")) as found:
        yield found
