"""`visiongate keys`: make, list and revoke API keys; a running server sees the change at once."""

from __future__ import annotations

import time
from typing import Annotated

import typer

from visiongate.cli import options
from visiongate.errors import InvalidSettings


def register(app: typer.Typer) -> None:
    """Adds the command."""
    group = typer.Typer(help="API keys.", no_args_is_help=True)
    group.command("create", help="Make a key; it is shown once.")(create)
    group.command("list", help="List the keys.")(list_keys)
    group.command("revoke", help="End a key.")(revoke)
    app.add_typer(group, name="keys")


def create(
    name: Annotated[str, typer.Option(help="What the key is for.")] = "",
    scopes: Annotated[
        str, typer.Option(help="Any of chat, batch, metrics, admin; separated by commas.")
    ] = "chat,batch",
    rate: Annotated[int, typer.Option(min=0, help="Requests a minute; 0 has no bound.")] = 0,
    quota: Annotated[int, typer.Option(min=0, help="Tokens a day; 0 has no bound.")] = 0,
    concurrency: Annotated[
        int, typer.Option(min=0, help="Requests that run together; 0 has no bound.")
    ] = 0,
    config: options.Config = None,
    pairs: options.Set = None,
) -> None:
    """Prints the new key; only its digest is stored."""
    from visiongate.gateway.auth import ALL_SCOPES, digest_of, new_key
    from visiongate.gateway.store import Store

    wanted = [scope.strip() for scope in scopes.split(",") if scope.strip()]
    unknown = set(wanted) - ALL_SCOPES
    if unknown or not wanted:
        raise InvalidSettings(
            f"scopes={scopes} is not allowed: any of {', '.join(sorted(ALL_SCOPES))}"
        )
    store = Store(options.settings_of(config, pairs).data_dir)
    key = new_key()
    record = store.add_key(
        name or "key",
        digest_of(key),
        wanted,
        requests_per_minute=rate,
        tokens_per_day=quota,
        max_running=concurrency,
    )
    store.close()
    print(f"id:     {record.id}")
    print(f"scopes: {', '.join(record.scopes)}")
    print(f"key:    {key}")
    print("Keep it now; it is not shown again.")


def list_keys(config: options.Config = None, pairs: options.Set = None) -> None:
    """Prints ids, names, scopes and limits; no key."""
    from rich.console import Console
    from rich.table import Table

    from visiongate.gateway.store import Store

    store = Store(options.settings_of(config, pairs).data_dir)
    table = Table("id", "name", "scopes", "rate", "quota", "concurrency", "made", "state", box=None)
    for record in store.list_keys():
        table.add_row(
            record.id,
            record.name,
            ",".join(record.scopes),
            _bound(record.requests_per_minute),
            _bound(record.tokens_per_day),
            _bound(record.max_running),
            time.strftime("%Y-%m-%d", time.localtime(record.created)),
            "revoked" if record.revoked else "good",
        )
    store.close()
    Console().print(table)


def revoke(
    key_id: Annotated[str, typer.Argument(metavar="ID", help="The key's id or name.")],
    config: options.Config = None,
    pairs: options.Set = None,
) -> None:
    """Ends a key at once, also in running servers."""
    from visiongate.gateway.store import Store

    store = Store(options.settings_of(config, pairs).data_dir)
    is_found = store.revoke_key(key_id)
    store.close()
    if not is_found:
        raise InvalidSettings(f"there is no good key {key_id}; `visiongate keys list` shows them")
    print(f"{key_id} is revoked")


def _bound(number: int) -> str:
    return str(number) if number else "-"
