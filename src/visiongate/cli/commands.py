"""The commands of `visiongate`, put together; errors end with a sentence and a status, no trace."""

from __future__ import annotations

import importlib
import sys
from typing import Annotated, Final

import typer

import visiongate
from visiongate.errors import VisionGateError

app = typer.Typer(
    name="visiongate",
    help="A private vision API for Qwen3-VL.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)

_COMMANDS: Final = (
    "serve",
    "ask",
    "batch",
    "pull",
    "doctor",
    "eval",
    "bench",
    "keys",
    "audit",
    "config",
)
"""Modules under `visiongate.cli`; each has `register(app)`."""


def _show_version(is_asked: bool) -> None:
    if is_asked:
        print(f"visiongate {visiongate.__version__}")
        raise typer.Exit


@app.callback()
def options(
    version: Annotated[  # a flag of the command line
        bool,
        typer.Option("--version", callback=_show_version, is_eager=True, help="Print the version."),
    ] = False,
) -> None:
    """A private vision API for Qwen3-VL."""


def run() -> None:
    """Registers every command that is there, and runs the one that was asked for."""
    for name in _COMMANDS:
        module = f"visiongate.cli.{name}"
        try:
            importlib.import_module(module).register(app)
        except ModuleNotFoundError as error:
            if error.name != module:
                raise
    try:
        app()
    except VisionGateError as error:
        print(f"visiongate: {error.message}", file=sys.stderr)
        raise SystemExit(2) from None
    except KeyboardInterrupt:
        raise SystemExit(130) from None
