"""`visiongate config show`: every setting, its value and where it came from."""

from __future__ import annotations

import json
from typing import Annotated

import typer
from pydantic import SecretStr

from visiongate.cli import options


def register(app: typer.Typer) -> None:
    """Adds the command."""
    group = typer.Typer(help="Settings.", no_args_is_help=True)
    group.command("show", help="Show every setting, its value and its origin.")(show)
    app.add_typer(group, name="config")


def show(
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
    preset: options.Preset = None,
    model: options.Model = None,
    config: options.Config = None,
    pairs: options.Set = None,
) -> None:
    """Shows the table; secrets are masked."""
    from visiongate.gateway.settings import Settings, environment_names

    settings = options.settings_of(config, pairs, preset=preset, model=model)
    rows = [
        (name, _shown(getattr(settings, name)), settings.origin(name), environment_names(name)[-1])
        for name in Settings.model_fields
    ]
    if as_json:
        found = [
            dict(zip(("name", "value", "origin", "variable"), row, strict=True)) for row in rows
        ]
        print(json.dumps(found, indent=2, ensure_ascii=False))
        return
    from rich.console import Console
    from rich.table import Table

    table = Table("setting", "value", "from", "variable", box=None)
    for row in rows:
        table.add_row(*(str(cell) for cell in row))
    Console().print(table)


def _shown(value: object) -> str:
    if isinstance(value, SecretStr):
        return "********" if value.get_secret_value() else ""
    if isinstance(value, tuple):
        return ", ".join(_shown(item) for item in value)
    return str(value)
