"""One SQLite file for what must outlive the process: keys, the audit chain, files and batches.

Writes are committed before a call returns, so a killed process loses nothing that was answered.
Keys made by another process (`visiongate keys create`) are seen at once.
"""

from __future__ import annotations

import json
import secrets
import sqlite3
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from visiongate.errors import InvalidSettings


@dataclass(frozen=True, slots=True)
class KeyRecord:
    """A key as it is stored; the key itself is nowhere.

    Attributes:
        requests_per_minute, tokens_per_day, max_running: 0 for no bound.
        revoked: seconds since the epoch, 0 while the key is good.
    """

    id: str
    name: str
    digest: str
    scopes: tuple[str, ...]
    requests_per_minute: int = 0
    tokens_per_day: int = 0
    max_running: int = 0
    created: float = 0.0
    revoked: float = 0.0


class Store:
    """The database; safe to use from several threads."""

    def __init__(self, folder: Path | None) -> None:
        """Opens `visiongate.db` in a folder, or a database in memory for None."""
        try:
            if folder is not None:
                folder.mkdir(parents=True, exist_ok=True)
            name = ":memory:" if folder is None else str(folder / "visiongate.db")
            self._connection = sqlite3.connect(
                name, timeout=10, isolation_level=None, check_same_thread=False
            )
            self._connection.row_factory = sqlite3.Row
            self._connection.execute("PRAGMA journal_mode = WAL")
            self._connection.execute("PRAGMA synchronous = NORMAL")
            self._connection.executescript(_SCHEMA)
        except (OSError, sqlite3.Error):
            raise InvalidSettings(
                f"the data folder {folder} cannot be used; set VISIONGATE_DATA_DIR to one that "
                "can be written"
            ) from None
        self._lock = threading.RLock()
        self._keys: dict[str, KeyRecord] = {}
        self._keys_version = -1

    def close(self) -> None:
        """Closes the file."""
        with self._lock:
            self._connection.close()

    @contextmanager
    def transaction(self) -> Iterator[sqlite3.Connection]:
        """A write transaction: all of it or nothing."""
        with self._lock:
            self._connection.execute("BEGIN IMMEDIATE")
            try:
                yield self._connection
            except BaseException:
                self._connection.execute("ROLLBACK")
                raise
            self._connection.execute("COMMIT")

    def rows(self, query: str, parameters: Sequence[object] = ()) -> list[sqlite3.Row]:
        """All rows of a query."""
        with self._lock:
            return self._connection.execute(query, parameters).fetchall()

    def row(self, query: str, parameters: Sequence[object] = ()) -> sqlite3.Row | None:
        """The first row of a query."""
        found = self.rows(query, parameters)
        return found[0] if found else None

    def has_keys(self) -> bool:
        """Whether any key was ever made; a revoked last key does not open the door."""
        self._refresh_keys()
        return bool(self._keys)

    def find_key(self, digest: str) -> KeyRecord | None:
        """The key with this digest, unless it was revoked."""
        self._refresh_keys()
        record = self._keys.get(digest)
        return record if record is not None and not record.revoked else None

    def list_keys(self) -> list[KeyRecord]:
        """All keys, revoked ones included, oldest first."""
        self._refresh_keys()
        return sorted(self._keys.values(), key=lambda record: record.created)

    def add_key(
        self,
        name: str,
        digest: str,
        scopes: Sequence[str],
        *,
        requests_per_minute: int = 0,
        tokens_per_day: int = 0,
        max_running: int = 0,
    ) -> KeyRecord:
        """Stores a new key's digest and limits."""
        record = KeyRecord(
            id=f"key_{secrets.token_hex(6)}",
            name=name,
            digest=digest,
            scopes=tuple(scopes),
            requests_per_minute=requests_per_minute,
            tokens_per_day=tokens_per_day,
            max_running=max_running,
            created=time.time(),
        )
        values = (
            record.id,
            name,
            digest,
            json.dumps(record.scopes),
            requests_per_minute,
            tokens_per_day,
            max_running,
            record.created,
        )
        with self.transaction() as connection:
            connection.execute("INSERT INTO keys VALUES (?, ?, ?, ?, ?, ?, ?, ?, 0)", values)
        self._keys_version = -1
        return record

    def revoke_key(self, key_id: str) -> bool:
        """Ends a key at once; False when there is none with this id or name."""
        with self.transaction() as connection:
            cursor = connection.execute(
                "UPDATE keys SET revoked = ? WHERE (id = ? OR name = ?) AND revoked = 0",
                (time.time(), key_id, key_id),
            )
        self._keys_version = -1
        return cursor.rowcount > 0

    def _refresh_keys(self) -> None:
        """Reads the keys again when another process has written to the file."""
        with self._lock:
            (version,) = self._connection.execute("PRAGMA data_version").fetchone()
            if version == self._keys_version:
                return
            found = self._connection.execute("SELECT * FROM keys").fetchall()
            self._keys = {row["digest"]: _key_record(row) for row in found}
            self._keys_version = version


def _key_record(row: sqlite3.Row) -> KeyRecord:
    return KeyRecord(**{**dict(row), "scopes": tuple(json.loads(row["scopes"]))})


_SCHEMA = """
CREATE TABLE IF NOT EXISTS keys (
    id TEXT PRIMARY KEY, name TEXT NOT NULL, digest TEXT NOT NULL UNIQUE, scopes TEXT NOT NULL,
    requests_per_minute INTEGER NOT NULL, tokens_per_day INTEGER NOT NULL,
    max_running INTEGER NOT NULL, created REAL NOT NULL, revoked REAL NOT NULL
);
CREATE TABLE IF NOT EXISTS audit (
    number INTEGER PRIMARY KEY, record TEXT NOT NULL, digest TEXT NOT NULL
);
CREATE TABLE IF NOT EXISTS files (
    id TEXT PRIMARY KEY, who TEXT NOT NULL, name TEXT NOT NULL, purpose TEXT NOT NULL,
    created REAL NOT NULL, num_bytes INTEGER NOT NULL, content BLOB NOT NULL
);
CREATE TABLE IF NOT EXISTS batches (
    id TEXT PRIMARY KEY, who TEXT NOT NULL, created REAL NOT NULL, state TEXT NOT NULL,
    endpoint TEXT NOT NULL, input_file TEXT NOT NULL, output_file TEXT, error_file TEXT,
    metadata TEXT NOT NULL, idempotency_key TEXT, times TEXT NOT NULL, errors TEXT,
    UNIQUE (who, idempotency_key)
);
CREATE TABLE IF NOT EXISTS batch_items (
    batch TEXT NOT NULL REFERENCES batches (id) ON DELETE CASCADE, number INTEGER NOT NULL,
    custom_id TEXT NOT NULL, body TEXT NOT NULL, is_done INTEGER NOT NULL DEFAULT 0,
    status INTEGER, result TEXT, PRIMARY KEY (batch, number)
);
"""
