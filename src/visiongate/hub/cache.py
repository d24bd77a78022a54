"""The cache on disk, in Hugging Face's layout.

models--Qwen--Qwen3-VL-2B-Instruct/
  blobs/<digest>                 a verified file; <digest>.part while it arrives
  snapshots/<commit>/<name>      links to blobs, and visiongate.json: what each file must be
  refs/<revision>                the commit; written last, once every file is there
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, Final, Protocol

from visiongate.errors import InvalidCheckpoint
from visiongate.hub.sources import Algorithm, Listing, RemoteFile

MANIFEST: Final = "visiongate.json"
_ALWAYS: Final = ("config.json", "tokenizer.json")
_CHUNK_BYTES: Final = 1024 * 1024


class Hash(Protocol):
    """What hashlib gives."""

    def update(self, data: bytes, /) -> None:
        """Takes more bytes."""

    def hexdigest(self) -> str:
        """The digest so far."""


@dataclass(frozen=True, slots=True)
class Verdict:
    """A file's hash, compared: `is_good` is None where nothing is known to compare with."""

    name: str
    is_good: bool | None
    digest: str


def cache_folder(cache_dir: Path | None = None) -> Path:
    """Where checkpoints are kept: the argument, HF_HUB_CACHE, HF_HOME/hub, the user's cache."""
    if cache_dir is not None:
        return cache_dir.expanduser()
    if named := os.environ.get("HF_HUB_CACHE"):
        return Path(named).expanduser()
    if home := os.environ.get("HF_HOME"):
        return Path(home).expanduser() / "hub"
    return Path(os.environ.get("XDG_CACHE_HOME", "~/.cache")).expanduser() / "huggingface/hub"


def model_folder(model: str, cache_dir: Path | None = None) -> Path:
    """The folder of one model in the cache."""
    return cache_folder(cache_dir) / f"models--{model.replace('/', '--')}"


def find_cached(
    model: str, *, revision: str | None = None, cache_dir: Path | None = None
) -> Path | None:
    """The complete snapshot of a model, or None; looks at this machine only."""
    folder = model_folder(model, cache_dir)
    for name in [revision] if revision else ["main", "master"]:
        commit = name
        with contextlib.suppress(OSError):
            commit = (folder / "refs" / name).read_text(encoding="utf-8").strip()
        snapshot = folder / "snapshots" / commit
        if snapshot.is_dir() and not missing_files(snapshot):
            return snapshot
    return None


def missing_files(folder: Path) -> list[str]:
    """Names that a checkpoint folder lacks; a link to nothing is missing, a cut file too."""
    names = list(_ALWAYS)
    index = folder / "model.safetensors.index.json"
    try:
        names += sorted(set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values()))
    except FileNotFoundError:
        names.append("model.safetensors")
    except (OSError, ValueError, KeyError):
        return [index.name]
    sizes = {name: entry["size"] for name, entry in read_manifest(folder).items()}
    return [name for name in names if not _has(folder / name, sizes.get(name))]


def read_manifest(folder: Path) -> dict[str, dict[str, Any]]:
    """What each file of a snapshot must be; empty where we did not fetch it."""
    try:
        found = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))["files"]
    except (OSError, ValueError, KeyError):
        return {}
    return dict(found)


def publish(folder: Path, listing: Listing) -> Path:
    """Names the verified blobs of a listing; the ref is written last, so a ref means complete."""
    snapshot = folder / "snapshots" / listing.commit
    snapshot.mkdir(parents=True, exist_ok=True)
    for file in listing.files:
        _link(folder / "blobs" / file.digest, snapshot / file.name)
    files = {
        file.name: {"size": file.size_bytes, "algorithm": file.algorithm, "digest": file.digest}
        for file in listing.files
    }
    manifest = {"model": listing.model, "source": listing.source, "commit": listing.commit}
    _write(snapshot / MANIFEST, json.dumps(manifest | {"files": files}, indent=1))
    # `main` is what every tool asks for first, ModelScope's branch is called master.
    names = {listing.revision, "main"} if listing.revision == "master" else {listing.revision}
    for name in names - {listing.commit}:
        _write(folder / "refs" / name, listing.commit)
    return snapshot


def copy_to(snapshot: Path, target: Path) -> Path:
    """The snapshot as a folder of plain files that can be copied or mounted on its own."""
    target = target.expanduser()
    target.mkdir(parents=True, exist_ok=True)
    for path in snapshot.iterdir():
        new = target / f"{path.name}.part"
        new.unlink(missing_ok=True)
        try:
            os.link(path.resolve(), new)
        except OSError:  # another file system
            shutil.copyfile(path, new)
        new.replace(target / path.name)
    return target


def verify(folder: Path) -> Iterator[Verdict]:
    """Hashes every file of a checkpoint again, one verdict after another."""
    known = read_manifest(folder)
    for path in sorted(folder.iterdir()):
        if path.name == MANIFEST or not (path.is_file() or path.name in known):
            continue
        entry = known.get(path.name, {})
        # The cache names a blob by its hash; that serves where another tool fetched it.
        digest = str(entry.get("digest") or (path.resolve().name if path.is_symlink() else ""))
        algorithm: Algorithm = "git-sha1" if len(digest) == 40 else "sha256"
        found = hash_file(path, algorithm) if path.is_file() else "missing"
        yield Verdict(path.name, found == digest if digest else None, found)


def check_family(folder: Path, model: str) -> None:
    """Refuses a model that could not run before its gigabytes are fetched.

    Raises InvalidCheckpoint with the family's name and what to do.
    """
    try:
        config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
        family = str(config.get("model_type", "(none)"))
    except (OSError, ValueError, AttributeError):
        raise InvalidCheckpoint(f"config.json of {model} cannot be read as JSON") from None
    if family != "qwen3_vl":
        hint = _HINTS.get(family, "serve it with another engine and put VisionGate in front of it")
        raise InvalidCheckpoint(
            f"{model} is of the family {family!r}; VisionGate runs dense Qwen3-VL checkpoints "
            f"(2B, 4B, 8B, 32B; Instruct or Thinking): {hint} (`visiongate serve --upstream URL`)"
        )
    if config.get("quantization_config"):
        method = config["quantization_config"].get("quant_method", "quantised")
        raise InvalidCheckpoint(
            f"{model} holds {method} weights; fetch the original (the same name without FP8, AWQ "
            "or GPTQ) and use --precision int8 to save memory"
        )


def new_hash(algorithm: Algorithm, size_bytes: int) -> Hash:
    """A hash that is compared with what the hub says of a file."""
    if algorithm == "sha256":
        return hashlib.sha256()
    found = hashlib.sha1(usedforsecurity=False)  # git's name for a blob
    found.update(f"blob {size_bytes}\0".encode())
    return found


def hash_file(path: Path, algorithm: Algorithm = "sha256") -> str:
    """The hash of a file on disk."""
    found = new_hash(algorithm, path.stat().st_size)
    with path.open("rb") as handle:
        feed(found, handle)
    return found.hexdigest()


def feed(found: Hash, handle: IO[bytes]) -> int:
    """Hashes the rest of a file; gives the number of bytes."""
    total = 0
    while chunk := handle.read(_CHUNK_BYTES):
        found.update(chunk)
        total += len(chunk)
    return total


@contextlib.contextmanager
def only_one(folder: Path) -> Iterator[None]:
    """Holds a model's folder, so that two processes that start together download it once."""
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / ".lock").open("w") as handle:
        try:
            import fcntl
        except ImportError:  # Windows has none; there the blobs' own names must do
            yield
            return
        fcntl.flock(handle, fcntl.LOCK_EX)
        yield


def is_present(folder: Path, file: RemoteFile) -> bool:
    """Whether a verified blob is there."""
    return _has(folder / "blobs" / file.digest, file.size_bytes)


def _has(path: Path, size_bytes: int | None) -> bool:
    try:
        return path.is_file() and size_bytes in (None, path.stat().st_size)
    except OSError:
        return False


def _link(blob: Path, name: Path) -> None:
    new = name.with_name(f".{name.name}.new")
    new.unlink(missing_ok=True)
    try:
        new.symlink_to(Path("../..") / "blobs" / blob.name)
    except OSError:  # no links on this file system
        shutil.copyfile(blob, new)
    new.replace(name)


def _write(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    new = path.with_name(f".{path.name}.new")
    new.write_text(text, encoding="utf-8")
    new.replace(path)


_HINTS: Final = {
    "qwen2_5_vl": "Qwen/Qwen3-VL-2B-Instruct and its sisters follow the Qwen2.5-VL models",
    "qwen2_vl": "Qwen/Qwen3-VL-2B-Instruct and its sisters follow the Qwen2-VL models",
    "qwen3_vl_moe": "choose a dense size, such as Qwen/Qwen3-VL-8B-Instruct",
    "qwen3": "this is a text model and cannot see; choose a Qwen3-VL one",
    "qwen2": "this is a text model and cannot see; choose a Qwen3-VL one",
}
