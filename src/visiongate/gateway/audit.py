"""The audit chain: one record for every request that asked something, each sealing the one before.

A record holds who, when, what kind of call, the digests of the pictures, the parameters, the status
code and the duration; never a question, an answer or a picture. Its digest covers the digest before
it, so a record that is changed, removed or put in between breaks the chain from there on.
"""

from __future__ import annotations

import hashlib
import json
import queue
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final

from visiongate.gateway.logs import Note
from visiongate.gateway.store import Store

GENESIS: Final = "0" * 64


@dataclass(frozen=True, slots=True)
class Verdict:
    """What verifying a chain found.

    Attributes:
        num_records: records read.
        broken_at: the number of the first record that does not fit; None when all do.
    """

    num_records: int
    broken_at: int | None = None


class Audit:
    """Appends records from one thread, in order, off the event loop."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self._queue: queue.SimpleQueue[dict[str, object] | None] = queue.SimpleQueue()
        self._thread = threading.Thread(target=self._write, name="audit", daemon=True)
        self._thread.start()

    def record(self, note: Note) -> None:
        """Queues the record of a finished request; it is written within milliseconds."""
        self._queue.put(record_of(note))

    def close(self) -> None:
        """Writes what is queued and stops."""
        self._queue.put(None)
        self._thread.join(timeout=10)

    def _write(self) -> None:
        is_open = True
        while is_open:
            records = [self._queue.get()]
            while not self._queue.empty():
                records.append(self._queue.get())
            is_open = None not in records
            append(self._store, [record for record in records if record is not None])


def record_of(note: Note) -> dict[str, object]:
    """What is kept of a request."""
    return {
        "time": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        "request_id": note.request_id,
        "who": note.who,
        "address": note.address,
        "call": f"{note.method} {note.route or note.path}",
        "status": note.status or 499,
        "seconds": round(note.seconds, 3),
        "images": note.image_digests,
        "parameters": {k: v for k, v in note.parameters.items() if v is not None},
        "prompt_tokens": note.prompt_tokens,
        "completion_tokens": note.completion_tokens,
    }


def append(store: Store, records: list[dict[str, object]]) -> None:
    """Seals records onto the chain, in one transaction."""
    if not records:
        return
    with store.transaction() as connection:
        last = connection.execute(
            "SELECT number, digest FROM audit ORDER BY number DESC LIMIT 1"
        ).fetchone()
        number, digest = (last["number"], last["digest"]) if last else (0, GENESIS)
        for record in records:
            number += 1
            text = json.dumps(record, sort_keys=True, ensure_ascii=False)
            digest = seal(digest, number, text)
            connection.execute("INSERT INTO audit VALUES (?, ?, ?)", (number, text, digest))


def seal(previous: str, number: int, record: str) -> str:
    """The digest of a record in its place."""
    return hashlib.sha256(f"{previous}\n{number}\n{record}".encode()).hexdigest()


def verify(store: Store) -> Verdict:
    """Reads the whole chain; a cut at its end shows only against a digest noted elsewhere."""
    digest, expected = GENESIS, 0
    for row in store.rows("SELECT number, record, digest FROM audit ORDER BY number"):
        expected += 1
        digest = seal(digest, expected, row["record"])
        if row["number"] != expected or row["digest"] != digest:
            return Verdict(expected, broken_at=expected)
    return Verdict(expected)


def export(store: Store) -> Iterator[str]:
    """The records as JSON lines, each with its number and digest."""
    for row in store.rows("SELECT number, record, digest FROM audit ORDER BY number"):
        record = {"number": row["number"], **json.loads(row["record"]), "digest": row["digest"]}
        yield json.dumps(record, ensure_ascii=False)
