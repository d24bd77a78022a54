"""Writes docs/settings.md and docs/openapi.json from the code; `--check` only compares.

python scripts/docs.py            writes
python scripts/docs.py --check    ends with status 1 when a file is stale
"""

from __future__ import annotations

import json
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT / "src"))

from visiongate.gateway.settings import (  # noqa: E402  # the path comes first
    PRESETS,
    Settings,
    allowed_values,
    environment_names,
    load,
)

HEAD = """# Settings

<!-- Made by scripts/docs.py from src/visiongate/gateway/settings.py; do not edit. -->

Every setting can be given as a flag (`--set name=value`; the common ones have flags of their
own), as an environment variable, or in a TOML file (`--config FILE`, or `VISIONGATE_CONFIG`). The
first of these that names a setting wins; then comes the preset, then the default.
`visiongate config show` prints the values in force and where each came from. A wrong value stops
the start with the name, the value and the range.

| setting | variable | default | presets | allowed | what it does |
|---|---|---|---|---|---|
"""


def settings_page() -> str:
    """The table of all settings."""
    return HEAD + "".join(_row(name) for name in Settings.model_fields)


def openapi_document() -> str:
    """The OpenAPI document as the server gives it."""
    from visiongate.gateway.app import create_app
    from visiongate.gateway.launch import make_backend

    with tempfile.TemporaryDirectory() as folder:
        values = {"data_dir": f"{folder}/data", "log_dir": f"{folder}/logs", "audit": False}
        settings = load(values, {})
        app = create_app(settings, make_backend(settings))
        document = app.openapi()
        app.state.service.store.close()
        app.state.service.logs.close()
    return json.dumps(document, indent=1, ensure_ascii=False) + "\n"


def main() -> int:
    """Writes or checks both files."""
    pages = {"settings.md": settings_page(), "openapi.json": openapi_document()}
    stale = [name for name, text in pages.items() if _read(ROOT / "docs" / name) != text]
    if "--check" in sys.argv:
        for name in stale:
            print(f"docs/{name} is stale; run `python scripts/docs.py`")
        return 1 if stale else 0
    (ROOT / "docs").mkdir(exist_ok=True)
    for name in stale:
        (ROOT / "docs" / name).write_text(pages[name], encoding="utf-8")
        print(f"docs/{name} written")
    return 0


def _row(name: str) -> str:
    field = Settings.model_fields[name]
    variables = ", ".join(f"`{variable}`" for variable in environment_names(name))
    presets = ", ".join(
        f"{preset}: {values[name]}" for preset, values in PRESETS.items() if name in values
    )
    default = field.default
    if hasattr(default, "get_secret_value"):
        default = default.get_secret_value()
    shown = f"`{default}`" if default not in ("", ()) else ""
    cells = (f"`{name}`", variables, shown, presets, allowed_values(name), field.description or "")
    return "| " + " | ".join(cells) + " |\n"


def _read(path: Path) -> str:
    return path.read_text(encoding="utf-8") if path.is_file() else ""


if __name__ == "__main__":
    raise SystemExit(main())
