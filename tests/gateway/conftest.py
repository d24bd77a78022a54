"""One server for most tests: the embedded model, no keys, the defaults."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest

from tests.gateway.serving import Server, command, serve


@pytest.fixture(scope="session")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    with serve(tmp_path_factory.mktemp("server")) as found:
        yield found


@pytest.fixture(scope="session")
def tight_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """One place, one waiting place, little patience, quick heartbeats, pictures by URL."""
    with serve(
        tmp_path_factory.mktemp("tight"),
        VISIONGATE_UPLOAD_SECONDS="2",
        VISIONGATE_MAX_QUEUE="1",
        VISIONGATE_HEARTBEAT_SECONDS="0.2",
        VISIONGATE_IMAGE_HOSTS="localhost",
        VISIONGATE_PRIVATE_IMAGE_HOSTS="true",
        MAX_CONCURRENCY="1",
        LC_ALL="C",
    ) as found:
        yield found


ADMIN_KEY = "an-administrators-key-for-tests"


@pytest.fixture(scope="session")
def keyed_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """A server that asks for keys; one key comes from its environment."""
    with serve(
        tmp_path_factory.mktemp("keyed"),
        VISIONGATE_API_KEYS=ADMIN_KEY,
        VISIONGATE_CORS_ORIGINS="https://shop.example",
    ) as found:
        yield found


@pytest.fixture(scope="session")
def make_key(keyed_server: Server) -> Callable[..., str]:
    """Makes a key on the command line while the server runs."""

    def make(*arguments: str) -> str:
        found = command(keyed_server.folder, "keys", "create", *arguments)
        return next(line.split()[1] for line in found.splitlines() if line.startswith("key:"))

    return make
