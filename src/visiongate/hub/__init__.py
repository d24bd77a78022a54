"""Floor 3: published checkpoints, from a hub to a folder of this machine.

    resolve("Qwen/Qwen3-VL-2B-Instruct")     the cached folder without any request, else a download
    pull(...)                                a download: resumed, verified, only the files we need
    verify(folder)                           the same hashes once more

The cache has Hugging Face's layout, so weights that other tools fetched are found and ours are
found by them. huggingface_hub itself is not used: its version 2 begins a file again after the
process was killed (a fresh temporary name each time), and compares sizes but no hashes.
"""

from __future__ import annotations

from visiongate.hub.cache import Verdict, cache_folder, find_cached, verify
from visiongate.hub.pull import Progress, is_offline, pull, resolve
from visiongate.hub.sources import DownloadFailed, Source

__all__ = [
    "DownloadFailed",
    "Progress",
    "Source",
    "Verdict",
    "cache_folder",
    "find_cached",
    "is_offline",
    "pull",
    "resolve",
    "verify",
]
