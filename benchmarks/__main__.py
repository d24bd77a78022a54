"""The command line: `python -m benchmarks --help`."""

from __future__ import annotations

import argparse
from pathlib import Path

from benchmarks import checkpoint, kernels, standard
from benchmarks.runners import ENGINES


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument(
        "what", nargs="?", default="work", choices=("work", "kernels", "checkpoint")
    )
    parser.add_argument("--works", type=_list, default=["W1", "W2", "W3", "W4", "W5"])
    parser.add_argument("--precision", type=_list, default=["float32", "bfloat16", "int8"])
    parser.add_argument("--engines", type=_list, default=list(ENGINES))
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--threads", type=int, default=standard.default_threads())
    parser.add_argument("--apart", action="store_true", help="load one engine at a time")
    parser.add_argument(
        "--openvino", default="", metavar="FOLDER", help="exported; may hold {precision}"
    )
    parser.add_argument("--llama-server", default="", metavar="URL")
    parser.add_argument("--llama-text", default="", metavar="FILE", help="may hold {precision}")
    parser.add_argument(
        "--python",
        type=_pairs,
        default={},
        metavar="ENGINE=PYTHON,...",
        help="interpreters of peers that are installed elsewhere",
    )
    parser.add_argument("--checkpoint", type=Path, help="instead of the random 2B one")
    return parser.parse_args()


def _list(text: str) -> list[str]:
    return text.split(",")


def _pairs(text: str) -> dict[str, str]:
    return dict(pair.split("=", 1) for pair in text.split(","))


def main() -> None:
    arguments = parse()
    if arguments.what == "kernels":
        kernels.run(arguments.runs)
        return
    folder = arguments.checkpoint or checkpoint.ensure(checkpoint.default_folder())
    if arguments.what == "checkpoint":
        print(folder)
        return
    standard.run(arguments, str(folder))


if __name__ == "__main__":
    main()
