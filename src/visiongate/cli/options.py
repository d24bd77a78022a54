"""Options that several commands share, and how they become settings."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from visiongate.errors import InvalidSettings
from visiongate.gateway.settings import Settings, load

Preset = Annotated[
    str | None,
    typer.Option(help="Edition: mini (embedded model), cpu (Qwen3-VL-2B) or pro (Qwen3-VL-4B)."),
]
Model = Annotated[
    str | None,
    typer.Option(help="A checkpoint folder or a hub's id."),
]
Precision = Annotated[
    str | None,
    typer.Option(help="float32, bfloat16, int8 or, on a GPU, float8."),
]
Device = Annotated[
    str | None,
    typer.Option(help="auto, cpu or cuda; auto prefers a GPU."),
]
Config = Annotated[
    Path | None,
    typer.Option(help="A TOML file of settings."),
]
Set = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="NAME=VALUE", help="Any setting; may be given several times."),
]


def settings_of(
    config: Path | None = None, pairs: list[str] | None = None, **flags: object
) -> Settings:
    """Settings from a command's flags, the environment and files."""
    found = dict(flags)
    for pair in pairs or []:
        name, has_value, value = pair.partition("=")
        if not has_value:
            raise InvalidSettings(f"--set {pair} has no value; write NAME=VALUE")
        found[name.strip().lower().removeprefix("visiongate_")] = value
    return load(found, config=config)
