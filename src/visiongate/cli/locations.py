"""Reads pictures and lists from paths of this machine and from URIs of buckets.

A location with `://` in it (s3, gs, abfs, hdfs, file) is opened by pyarrow, with the credentials
that its own rules find; every other one is a path.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any
from urllib.parse import quote

from visiongate.errors import InvalidRequest, InvalidSettings


def is_uri(location: str) -> bool:
    """Whether pyarrow opens this location."""
    return "://" in location


def is_folder(location: str) -> bool:
    """Whether this is a folder, or a prefix of a bucket."""
    if not is_uri(location):
        return Path(location).is_dir()
    filesystem, path = _open(location)
    from pyarrow import fs

    return bool(filesystem.get_file_info(path).type == fs.FileType.Directory)


def list_files(folder: str) -> list[tuple[str, str]]:
    """Every file below a folder by name: (name below the folder, location); raises OSError."""
    if not is_uri(folder):
        root = Path(folder)
        files = sorted(found for found in root.rglob("*") if found.is_file())
        return [(str(found.relative_to(root)), str(found)) for found in files]
    filesystem, path = _open(folder)
    from pyarrow import fs

    infos = filesystem.get_file_info(fs.FileSelector(path, recursive=True))
    base = path.rstrip("/") + "/"
    names = sorted(i.path.removeprefix(base) for i in infos if i.type == fs.FileType.File)
    return [(name, _append(folder, name)) for name in names]


def read_bytes(location: str) -> bytes:
    """The content; raises OSError."""
    if not is_uri(location):
        return Path(location).read_bytes()
    filesystem, path = _open(location)
    with filesystem.open_input_stream(path) as stream:
        content: bytes = stream.read()
    return content


def beside(location: str, name: str) -> str:
    """The location that `name` means inside the file at `location`."""
    if is_uri(name):
        return name
    if not is_uri(location):
        return str(Path(location).parent / name)
    if name.startswith("/"):
        return name
    address, _, query = location.partition("?")
    return _append(f"{address.rpartition('/')[0]}?{query}", name)


def shown(location: str) -> str:
    """A location for people: without the credentials and the query that a URI may carry."""
    if not is_uri(location):
        return location
    scheme, _, rest = location.partition("?")[0].partition("://")
    return f"{scheme}://{rest.rpartition('@')[2]}"


def _append(folder: str, name: str) -> str:
    """A location below a URI, whose query (endpoint, region) stays at the end."""
    address, _, query = folder.partition("?")
    return f"{address.rstrip('/')}/{quote(name)}" + (f"?{query}" if query else "")


def _open(location: str) -> tuple[Any, str]:
    """The filesystem of a URI and the path in it; the text of an error shows no credentials."""
    scheme = location.partition("://")[0]
    try:
        from pyarrow import ArrowException, fs
    except ImportError:
        raise InvalidSettings(
            f"{scheme}:// needs the pyarrow library: pip install 'visiongate[ray]'"
        ) from None
    try:
        filesystem, path = fs.FileSystem.from_uri(location)
    except (ArrowException, ValueError):
        raise InvalidRequest(f"this {scheme}:// address cannot be opened; check its form") from None
    return filesystem, path
