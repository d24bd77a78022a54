"""`visiongate serve`: the HTTP service."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import socket
import sys
from collections.abc import Coroutine
from typing import TYPE_CHECKING, Annotated, Any

import typer

from visiongate.cli import options
from visiongate.errors import InvalidSettings

if TYPE_CHECKING:
    import uvicorn

    from visiongate.gateway.service import Service


def register(app: typer.Typer) -> None:
    """Adds the command."""
    app.command("serve", help="Run the HTTP service and its page.")(serve)


def serve(
    preset: options.Preset = None,
    model: options.Model = None,
    precision: options.Precision = None,
    device: options.Device = None,
    host: Annotated[str | None, typer.Option(help="Address to listen on.")] = None,
    port: Annotated[int | None, typer.Option(help="Port to listen on.")] = None,
    upstream: Annotated[
        str | None,
        typer.Option(help="Stand in front of this OpenAI-compatible server instead of a model."),
    ] = None,
    insecure: Annotated[
        bool | None,
        typer.Option("--insecure", help="Listen beyond this machine without any key."),
    ] = None,
    debug: Annotated[
        bool | None,
        typer.Option("--debug", help="Say more on the terminal."),
    ] = None,
    config: options.Config = None,
    pairs: options.Set = None,
) -> None:
    """Serves until it is told to stop (Ctrl-C, SIGTERM)."""
    settings = options.settings_of(
        config,
        pairs,
        preset=preset,
        model=model,
        precision=precision,
        device=device,
        host=host,
        port=port,
        upstream=upstream,
        insecure=insecure,
        debug=debug,
    )
    # Imported here: `visiongate --help` needs neither a server nor a web framework.
    import uvicorn

    from visiongate.gateway.app import create_app
    from visiongate.gateway.auth import check_door
    from visiongate.gateway.launch import make_backend, warnings_of

    logging.basicConfig(
        level=logging.DEBUG if settings.debug else logging.WARNING,
        format="%(asctime)s %(levelname)s %(name)s: %(message)s",
        stream=sys.stderr,
    )
    app = create_app(settings, make_backend(settings))
    service: Service = app.state.service
    has_keys = not service.keys.is_open
    check_door(settings, has_keys=has_keys)
    for warning in warnings_of(settings, has_keys=has_keys):
        print(f"note: {warning}", flush=True)
    listener = _listen(settings.host, settings.port)
    url = _url(settings.host, listener.getsockname()[1])
    server = uvicorn.Server(
        uvicorn.Config(
            app,
            log_config=None,
            access_log=False,
            server_header=False,
            http="httptools",
            timeout_keep_alive=30,
            timeout_graceful_shutdown=settings.drain_seconds,
            proxy_headers=bool(settings.trusted_proxies),
            forwarded_allow_ips=list(settings.trusted_proxies),
        )
    )

    service.is_draining = lambda: server.should_exit

    async def main() -> None:
        announcing = asyncio.create_task(_announce(server, service, url))
        try:
            await server.serve(sockets=[listener])
        finally:
            announcing.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await announcing

    with contextlib.suppress(KeyboardInterrupt):
        _run(main())


def _run(main: Coroutine[Any, Any, None]) -> None:
    try:
        import uvloop
    except ImportError:  # there is none for Windows
        asyncio.run(main)
    else:
        uvloop.run(main)


async def _announce(server: uvicorn.Server, service: Service, url: str) -> None:
    """Says where the service is, once a request would be answered and not before."""
    print(f"loading; the page is at {url}", flush=True)
    await service.ready.wait()
    while not server.started:  # noqa: ASYNC110  # uvicorn has no event for it
        await asyncio.sleep(0.01)
    print(f"API server running on {url}", flush=True)


def _listen(host: str, port: int) -> socket.socket:
    """A listening socket; a busy port ends with a sentence."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    listener = socket.socket(family, socket.SOCK_STREAM)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listener.bind((host, port))
    except OSError as error:
        listener.close()
        raise InvalidSettings(
            f"cannot listen on {host}:{port} ({error.strerror}); is another service running "
            "there? choose another with --port"
        ) from None
    listener.listen(1024)
    return listener


def _url(host: str, port: int) -> str:
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"
