"""`visiongate audit`: verify the chain of records, or export it."""

from __future__ import annotations

import typer

from visiongate.cli import options


def register(app: typer.Typer) -> None:
    """Adds the command."""
    group = typer.Typer(help="The audit chain.", no_args_is_help=True)
    group.command("verify", help="Check that no record was changed or removed.")(verify)
    group.command("export", help="Print the records as JSON lines.")(export)
    app.add_typer(group, name="audit")


def verify(config: options.Config = None, pairs: options.Set = None) -> None:
    """Ends with status 1 when the chain is broken."""
    from visiongate.gateway import audit
    from visiongate.gateway.store import Store

    store = Store(options.settings_of(config, pairs).data_dir)
    verdict = audit.verify(store)
    last = store.row("SELECT digest FROM audit ORDER BY number DESC LIMIT 1")
    store.close()
    if verdict.broken_at is not None:
        print(f"broken at record {verdict.broken_at}")
        raise typer.Exit(1)
    print(f"{verdict.num_records} records, unbroken; last digest {last['digest'] if last else '-'}")


def export(config: options.Config = None, pairs: options.Set = None) -> None:
    """Prints every record with its number and digest."""
    from visiongate.gateway import audit
    from visiongate.gateway.store import Store

    store = Store(options.settings_of(config, pairs).data_dir)
    for line in audit.export(store):
        print(line)
    store.close()
