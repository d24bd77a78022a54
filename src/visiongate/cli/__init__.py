"""Floor 4: the command line.

`main` is what the `visiongate` command runs; every command lives in a module of its name and
imports what it needs when it runs, so that `--help` is quick.
"""

from __future__ import annotations


def main() -> None:
    """Runs the command line."""
    from visiongate.cli.commands import run

    run()
