"""One server for pages and proxy: the embedded model, its proxies trusted."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.gateway.serving import Server, serve


@pytest.fixture(scope="package")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    folder = tmp_path_factory.mktemp("server")
    with serve(folder, VISIONGATE_TRUSTED_PROXIES="127.0.0.1") as found:
        yield found
