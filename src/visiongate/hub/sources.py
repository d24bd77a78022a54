"""Where checkpoints are published: what a model consists of, and the address of each file."""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Literal
from urllib.parse import quote

import httpx

from visiongate.errors import VisionGateError

Source = Literal["hf", "modelscope"]
Algorithm = Literal["sha256", "git-sha1"]

MODEL_ID: Final = re.compile(r"[A-Za-z0-9][\w.-]{0,95}/[A-Za-z0-9][\w.-]{0,95}")
_SAFE_NAME: Final = re.compile(r"\w[\w.-]{0,199}")
_NEEDED: Final = re.compile(
    r"config\.json|generation_config\.json|preprocessor_config\.json|tokenizer\.json"
    r"|tokenizer_config\.json|special_tokens_map\.json|added_tokens\.json"
    r"|chat_template\.(json|jinja)|model\.safetensors\.index\.json|LICENSE"
    r"|model(-\d+-of-\d+)?\.safetensors"
)
"""What the engine reads, and the licence; not pictures, readmes or the same weights otherwise."""


class DownloadFailed(VisionGateError):
    """A checkpoint could not be fetched; the message says why and what to do."""


@dataclass(frozen=True, slots=True)
class RemoteFile:
    """One file of a checkpoint: where it is and what it must be."""

    name: str
    url: str
    size_bytes: int
    algorithm: Algorithm
    digest: str


@dataclass(frozen=True, slots=True)
class Listing:
    """A checkpoint at one revision.

    Attributes:
        commit: names the snapshot; the same commit always means the same files.
    """

    model: str
    source: Source
    revision: str
    commit: str
    files: tuple[RemoteFile, ...]


def list_files(client: httpx.Client, model: str, source: Source, revision: str | None) -> Listing:
    """Asks a hub which files a model has; raises DownloadFailed in words."""
    read = _from_hugging_face if source == "hf" else _from_modelscope
    listing = read(client, model, revision or ("main" if source == "hf" else "master"))
    names = {file.name for file in listing.files}
    if "config.json" not in names or not any(name.endswith(".safetensors") for name in names):
        raise DownloadFailed(
            f"{model} on {host_of(source)} is no checkpoint in Hugging Face layout (it needs "
            "config.json and safetensors files; GGUF and adapters are not supported)"
        )
    return listing


def endpoint(source: Source) -> str:
    """The hub's address: HF_ENDPOINT and MODELSCOPE_ENDPOINT name mirrors."""
    if source == "hf":
        return os.environ.get("HF_ENDPOINT", "").rstrip("/") or "https://huggingface.co"
    named = os.environ.get("MODELSCOPE_ENDPOINT", "").rstrip("/")
    domain = os.environ.get("MODELSCOPE_DOMAIN", "")
    return named or (f"https://{domain}" if domain else "https://modelscope.cn")


def host_of(source: Source) -> str:
    """The hub's host and port, for sentences."""
    return httpx.URL(endpoint(source)).netloc.decode()


def headers_of(source: Source) -> dict[str, str]:
    """A token where the user has one; nothing about this machine."""
    headers = {"User-Agent": "visiongate", "Accept-Encoding": "identity"}
    token = _hugging_face_token() if source == "hf" else os.environ.get("MODELSCOPE_API_TOKEN", "")
    if token:
        headers["Authorization"] = f"Bearer {token}"
    return headers


def refusal(model: str, source: Source, response: httpx.Response) -> DownloadFailed:
    """What a hub's refusal means for the user."""
    host = host_of(source)
    code = response.headers.get("X-Error-Code", "")
    token = "HF_TOKEN" if source == "hf" else "MODELSCOPE_API_TOKEN"
    if code == "GatedRepo" or response.status_code == 403:
        return DownloadFailed(
            f"{model} is gated on {host}: accept its terms on the model's page, then set {token} "
            "to a token of the same account"
        )
    if code == "RevisionNotFound":
        return DownloadFailed(f"{model} on {host} has no such revision; leave --revision out")
    if response.status_code in {401, 404}:
        other = "modelscope" if source == "hf" else "hf"
        return DownloadFailed(
            f"{host} has no public model {model}: check the spelling, try --from {other}, or set "
            f"{token} when the model is private"
        )
    if response.status_code == 429:
        return DownloadFailed(f"{host} asks to slow down (429): try again in a few minutes")
    return DownloadFailed(
        f"{host} answered {response.status_code} for {model}: try again later, or another mirror "
        "(HF_ENDPOINT, --from modelscope)"
    )


def unreachable(source: Source) -> DownloadFailed:
    """No answer at all."""
    variable = "HF_ENDPOINT" if source == "hf" else "MODELSCOPE_ENDPOINT"
    other = "modelscope" if source == "hf" else "hf"
    return DownloadFailed(
        f"no connection to {host_of(source)}. Set {variable} to a mirror, try --from {other}, or "
        "fetch the folder on another machine (`visiongate pull MODEL --to FOLDER`), mount it and "
        "set MODEL_PATH"
    )


def get_json(client: httpx.Client, url: str, model: str, source: Source) -> Mapping[str, Any]:
    """A JSON object from a hub."""
    try:
        response = client.get(url)
    except httpx.HTTPError:
        raise unreachable(source) from None
    if response.status_code != 200:
        raise refusal(model, source, response)
    try:
        found = response.json()
    except ValueError:
        found = None
    if not isinstance(found, dict):
        raise DownloadFailed(
            f"{host_of(source)} did not answer as a model hub does; check the address of the "
            "mirror, and whether a proxy or a log-in page stands between"
        )
    return found


def _from_hugging_face(client: httpx.Client, model: str, revision: str) -> Listing:
    base = endpoint("hf")
    url = f"{base}/api/models/{model}/revision/{quote(revision, safe='')}?blobs=true"
    found = get_json(client, url, model, "hf")
    commit = str(found.get("sha", ""))
    files = []
    for entry in found.get("siblings", ()):
        name, lfs = str(entry.get("rfilename", "")), entry.get("lfs") or {}
        if not _is_needed(name):
            continue
        digest = str(lfs.get("sha256") or entry.get("blobId") or "")
        files.append(
            RemoteFile(
                name,
                f"{base}/{model}/resolve/{commit}/{quote(name)}",
                int(lfs.get("size") or entry.get("size") or 0),
                "sha256" if lfs else "git-sha1",
                digest,
            )
        )
    return _checked(Listing(model, "hf", revision, commit, tuple(files)))


def _from_modelscope(client: httpx.Client, model: str, revision: str) -> Listing:
    base = f"{endpoint('modelscope')}/api/v1/models/{model}/repo"
    url = f"{base}/files?Revision={quote(revision, safe='')}&Recursive=false"
    data = get_json(client, url, model, "modelscope").get("Data") or {}
    files = tuple(
        RemoteFile(
            str(entry["Path"]),
            f"{base}?Revision={quote(revision, safe='')}&FilePath={quote(str(entry['Path']))}",
            int(entry.get("Size", 0)),
            "sha256",
            str(entry.get("Sha256", "")),
        )
        for entry in data.get("Files") or ()
        if entry.get("Type") == "blob" and _is_needed(str(entry.get("Path", "")))
    )
    return _checked(Listing(model, "modelscope", revision, _commit_of(files), files))


def _commit_of(files: tuple[RemoteFile, ...]) -> str:
    """A name for a set of files where the hub gives none."""
    text = "\n".join(f"{file.name} {file.digest}" for file in sorted(files, key=lambda f: f.name))
    return hashlib.sha256(text.encode()).hexdigest()[:40]


def _is_needed(name: str) -> bool:
    return bool(_SAFE_NAME.fullmatch(name) and _NEEDED.fullmatch(name))


def _checked(listing: Listing) -> Listing:
    """A hub is another machine: nothing it says becomes a path unless it looks like one of ours."""
    length = {"sha256": 64, "git-sha1": 40}
    is_good = re.fullmatch(r"[0-9a-f]{40}", listing.commit) and all(
        re.fullmatch(r"[0-9a-f]+", file.digest) and len(file.digest) == length[file.algorithm]
        for file in listing.files
    )
    if not is_good:
        raise DownloadFailed(
            f"{host_of(listing.source)} names no hashes for {listing.model}, so nothing could be "
            "verified; use another mirror"
        )
    return listing


def _hugging_face_token() -> str:
    found = os.environ.get("HF_TOKEN") or os.environ.get("HUGGING_FACE_HUB_TOKEN") or ""
    if found:
        return found.strip()
    home = Path(os.environ.get("HF_HOME", "~/.cache/huggingface")).expanduser()
    path = Path(os.environ.get("HF_TOKEN_PATH", home / "token"))
    try:
        return path.read_text(encoding="utf-8").strip()
    except OSError:
        return ""
