"""Fetches a checkpoint: files go on where they stopped, and get their names once they are good."""

from __future__ import annotations

import errno
import os
import shutil
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Final

import httpx

from visiongate.errors import InvalidSettings
from visiongate.hub import cache
from visiongate.hub.sources import (
    MODEL_ID,
    DownloadFailed,
    Listing,
    RemoteFile,
    Source,
    headers_of,
    host_of,
    list_files,
    refusal,
    unreachable,
)

MAX_TRIES: Final = 5
"""Tries of one file in a row that bring no new byte."""

_REPORT_SECONDS: Final = 0.2
_RETRIED: Final = frozenset({408, 429, 500, 502, 503, 504})


@dataclass(frozen=True, slots=True)
class Progress:
    """How far a download is; bytes count over all files."""

    model: str
    file: str
    done_bytes: int
    total_bytes: int
    seconds: float

    @property
    def fraction(self) -> float:
        """Between 0 and 1."""
        return self.done_bytes / self.total_bytes if self.total_bytes else 1.0

    def __str__(self) -> str:
        """For a log line and the page."""
        done, total = self.done_bytes / 1e6, self.total_bytes / 1e6
        return f"downloading {self.model}: {done:.0f} of {total:.0f} MB"


Listener = Callable[[Progress], None]


def resolve(
    model: str,
    *,
    cache_dir: Path | None = None,
    source: Source = "hf",
    revision: str | None = None,
    offline: bool | None = None,
    progress: Listener | None = None,
) -> Path:
    """The folder of a checkpoint: a path as it is, an id from the cache, else downloaded.

    A path and a cached id cause no request. `offline` None follows VISIONGATE_OFFLINE and
    HF_HUB_OFFLINE. Raises InvalidSettings for what is neither a folder nor an id, DownloadFailed
    when the download is refused or fails, InvalidCheckpoint for a family that cannot run.
    """
    folder = Path(model).expanduser()
    if folder.is_dir():
        if (folder / "config.json").is_file():
            return folder
        raise InvalidSettings(f"{model} is not a checkpoint folder: it has no config.json")
    if not MODEL_ID.fullmatch(model):
        raise InvalidSettings(
            f"model={model} is neither a folder on this machine nor a hub's id such as "
            "Qwen/Qwen3-VL-2B-Instruct"
        )
    found = cache.find_cached(model, revision=revision, cache_dir=cache_dir)
    if found is not None:
        return found
    if is_offline() if offline is None else offline:
        raise DownloadFailed(
            f"{model} is not in {cache.cache_folder(cache_dir)} and downloads are switched off "
            "(HF_HUB_OFFLINE or VISIONGATE_OFFLINE): fetch it elsewhere with `visiongate pull "
            f"{model} --to FOLDER`, mount the folder and set MODEL_PATH"
        )
    return pull(model, cache_dir=cache_dir, source=source, revision=revision, progress=progress)


def pull(
    model: str,
    *,
    cache_dir: Path | None = None,
    source: Source = "hf",
    revision: str | None = None,
    progress: Listener | None = None,
) -> Path:
    """Downloads what is missing of a model and gives its folder; raises as `resolve` does."""
    if not MODEL_ID.fullmatch(model):
        raise InvalidSettings(f"{model} is not a hub's id such as Qwen/Qwen3-VL-2B-Instruct")
    folder = cache.model_folder(model, cache_dir)
    timeout = httpx.Timeout(30.0, connect=10.0)
    try:
        with (
            httpx.Client(
                headers=headers_of(source), timeout=timeout, follow_redirects=True
            ) as client,
            cache.only_one(folder),
        ):
            listing = list_files(client, model, source, revision)
            _check_space(folder, listing)
            _Puller(client, folder, listing, progress).run()
            return cache.publish(folder, listing)
    except OSError as error:
        raise _disk_failure(folder, error) from None


def is_offline() -> bool:
    """Whether the environment forbids downloads."""
    names = ("VISIONGATE_OFFLINE", "HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE")
    return any(os.environ.get(name, "").lower() in {"1", "true", "yes", "on"} for name in names)


class _Puller:
    """One download of one model."""

    def __init__(
        self, client: httpx.Client, folder: Path, listing: Listing, progress: Listener | None
    ) -> None:
        self.client = client
        self.blobs = folder / "blobs"
        self.folder = folder
        self.listing = listing
        self.progress = progress
        self.total_bytes = sum(file.size_bytes for file in listing.files)
        self.before_bytes = 0  # of files that are complete
        self.started = time.monotonic()
        self.next_report = 0.0

    def run(self) -> None:
        """Fetches what is not there: the small files first, so that a wrong family ends early."""
        self.blobs.mkdir(parents=True, exist_ok=True)
        files = sorted(self.listing.files, key=lambda f: (f.name != "config.json", f.size_bytes))
        for file in files:
            if not cache.is_present(self.folder, file):
                self._fetch_verified(file)
            self.before_bytes += file.size_bytes
            self._report(file, 0, is_last=True)
            if file.name == "config.json":
                self._check_family(file)

    def _check_family(self, file: RemoteFile) -> None:
        with tempfile.TemporaryDirectory() as name:
            shutil.copyfile(self.blobs / file.digest, Path(name) / "config.json")
            cache.check_family(Path(name), self.listing.model)

    def _fetch_verified(self, file: RemoteFile) -> None:
        """A file whose hash is wrong is thrown away and asked for once more."""
        part = self.blobs / f"{file.digest}.part"
        for _ in range(2):
            found = self._fetch(file, part)
            if found == file.digest:
                part.replace(self.blobs / file.digest)
                return
            part.unlink(missing_ok=True)
        raise DownloadFailed(
            f"{file.name} from {host_of(self.listing.source)} came twice with another hash than "
            "the hub names; nothing of it was kept: use another mirror, and tell whoever runs this"
        )

    def _fetch(self, file: RemoteFile, part: Path) -> str:
        """Brings a part to its full size over as many connections as it takes; gives its hash."""
        hasher = cache.new_hash(file.algorithm, file.size_bytes)
        with part.open("a+b") as out:
            out.seek(0)
            have = cache.feed(hasher, out)
            tries = 0
            while have < file.size_bytes and tries < MAX_TRIES:
                before = have
                try:
                    have, hasher = self._stream(file, out, have, hasher)
                except httpx.HTTPError:  # what is on disk counts, nothing else
                    out.flush()
                    out.seek(0)
                    hasher = cache.new_hash(file.algorithm, file.size_bytes)
                    have = cache.feed(hasher, out)
                tries = 0 if have > before else tries + 1
                if have < file.size_bytes and tries:
                    time.sleep(min(0.2 * 2.0**tries, 10.0))
            if have < file.size_bytes:
                raise unreachable(self.listing.source)
            out.flush()
            os.fsync(out.fileno())
        return hasher.hexdigest() if have == file.size_bytes else "too long"

    def _stream(
        self, file: RemoteFile, out: IO[bytes], have: int, hasher: cache.Hash
    ) -> tuple[int, cache.Hash]:
        """One connection: from byte `have` to as far as it goes."""
        headers = {"Range": f"bytes={have}-"} if have else {}
        with self.client.stream("GET", file.url, headers=headers) as response:
            if response.status_code in _RETRIED:
                return have, hasher
            if response.status_code not in {200, 206}:
                raise refusal(self.listing.model, self.listing.source, response)
            if have and not _continues(response, have):  # the whole file again: start over
                out.truncate(0)
                have, hasher = 0, cache.new_hash(file.algorithm, file.size_bytes)
            for chunk in response.iter_raw():
                out.write(chunk)
                hasher.update(chunk)
                have += len(chunk)
                self._report(file, have)
                if have > file.size_bytes:
                    break
        return have, hasher

    def _report(self, file: RemoteFile, have: int, *, is_last: bool = False) -> None:
        now = time.monotonic()
        if self.progress is None or (now < self.next_report and not is_last):
            return
        self.next_report = now + _REPORT_SECONDS
        self.progress(
            Progress(
                self.listing.model,
                file.name,
                self.before_bytes + have,
                self.total_bytes,
                now - self.started,
            )
        )


def _continues(response: httpx.Response, have: int) -> bool:
    """Whether a response goes on at byte `have`."""
    if response.status_code != 206:
        return False
    return str(response.headers.get("Content-Range", "")).startswith(f"bytes {have}-")


def _check_space(folder: Path, listing: Listing) -> None:
    """Says that the disk is too small before the first gigabyte, not after the last."""
    needed = 0
    for file in listing.files:
        if not cache.is_present(folder, file):
            part = folder / "blobs" / f"{file.digest}.part"
            needed += file.size_bytes - (part.stat().st_size if part.exists() else 0)
    free = shutil.disk_usage(folder).free
    if needed > free:
        raise _too_full(folder, needed, free)


def _too_full(folder: Path, needed: int, free: int) -> DownloadFailed:
    return DownloadFailed(
        f"the disk is too full: {needed / 1e9:.2f} GB more are needed in {folder.parent} and "
        f"{free / 1e9:.2f} GB are free; make room, or set HF_HOME to a larger disk"
    )


def _disk_failure(folder: Path, error: OSError) -> DownloadFailed:
    if error.errno in {errno.ENOSPC, errno.EDQUOT}:
        free = shutil.disk_usage(folder.parent).free if folder.parent.exists() else 0
        return DownloadFailed(
            f"the disk of {folder.parent} became full ({free / 1e9:.2f} GB are free); make room "
            "and run the same command again, it goes on where it stopped"
        )
    return DownloadFailed(
        f"the cache folder {folder.parent} cannot be written ({error.strerror}): give this user "
        "the right to, or set HF_HOME to a folder of its own"
    )
