"""Several runs' JSON lines as one result file, and its table for the page.

    python -m benchmarks.collect RUN.txt ... > benchmarks/results/NAME.json
    python -m benchmarks.collect --table benchmarks/results/NAME.json

Runs that were made together stay together in the file; the table takes medians over all of them.
"""

from __future__ import annotations

import json
import statistics
import sys
from pathlib import Path
from typing import Any

COLUMNS = {
    "W1 first token s": ("W1", "first_token_seconds"),
    "W1 decode tok/s": ("W1", "decode_tokens_per_second"),
    "three W1, all s": ("W3", "total_seconds"),
    "second question s": ("W4", "second_question_seconds"),
    "longest gap s (W5)": ("W5", "longest_gap_seconds"),
}


def collect(files: list[str]) -> dict[str, Any]:
    """The last JSON line of every file."""
    runs = []
    for file in files:
        lines = Path(file).read_text(encoding="utf-8").splitlines()
        found = [line for line in lines if line.startswith('{"machine"')]
        if found:
            runs.append({"name": Path(file).stem, **json.loads(found[-1])})
    return {"runs": runs}


def table(content: dict[str, Any]) -> str:
    """Markdown: one line for each engine and precision."""
    rows: dict[tuple[str, str], dict[str, list[float]]] = {}
    peaks: dict[tuple[str, str], float] = {}
    for run in content["runs"]:
        for result in run["results"]:
            key = (result["precision"], result["engine"])
            row = rows.setdefault(key, {})
            for title, (work, figure) in COLUMNS.items():
                row.setdefault(title, []).extend(
                    one[figure] for one in result["runs"].get(work, []) if figure in one
                )
            if "W1" in result["runs"] and result["peak_bytes"]:
                peaks[key] = max(peaks.get(key, 0.0), result["peak_bytes"] / 1e9)
    lines = ["| | " + " | ".join(COLUMNS) + " | peak GB (W1) |"]
    lines.append("|---" * (len(COLUMNS) + 2) + "|")
    for key in sorted(rows):
        cells = [
            f"{statistics.median(rows[key][title]):.3g}" if rows[key][title] else ""
            for title in COLUMNS
        ]
        peak = f"{peaks[key]:.1f}" if key in peaks else ""
        lines.append(f"| {key[0]}, {key[1]} | " + " | ".join(cells) + f" | {peak} |")
    return "\n".join(lines)


def main() -> None:
    """Prints what was asked for."""
    arguments = sys.argv[1:]
    if arguments[:1] == ["--table"]:
        print(table(json.loads(Path(arguments[1]).read_text(encoding="utf-8"))))
    else:
        print(json.dumps(collect(arguments), indent=1))


if __name__ == "__main__":
    main()
