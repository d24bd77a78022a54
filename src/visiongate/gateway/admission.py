"""Decides who runs now and who waits: a bounded queue that is fair between keys.

A free place goes to the key with the fewest running requests, and among those to the one served
longest ago, so a key with a thousand requests cannot hold up a key with one. While another key was
here lately and has no place now, the last free one is kept for it: its next request runs at once.
When every waiting place is taken, a newcomer from a light key takes the place of the heaviest key's
newest request.
Batch work (priority 1) gets a place only when nobody else waits, and never the last one.
"""

from __future__ import annotations

import asyncio
import itertools
import math
import time
from collections import Counter
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from typing import Final

from visiongate.errors import Busy, DeadlineExceeded

LATELY_SECONDS: Final = 2.0
"""How long after a key's last request one place is kept free of the others."""

_SMOOTHING: Final = 0.2


@dataclass(eq=False, slots=True)
class Ticket:
    """One request's wait for a place.

    Attributes:
        position: 1 is next; 0 once admitted.
        max_running: the most requests of this key that run together; None for no bound.
    """

    who: str
    priority: int
    max_running: int | None
    number: int
    position: int = 0
    is_admitted: bool = False
    is_refused: bool = False
    arrived: float = field(default_factory=time.monotonic)
    admitted: float = 0.0
    _changed: asyncio.Event = field(default_factory=asyncio.Event)

    @property
    def wait_seconds(self) -> float:
        """Time spent waiting."""
        return (self.admitted or time.monotonic()) - self.arrived

    def touch(self) -> None:
        """Tells the waiter that something changed."""
        self._changed.set()

    async def changed(self, timeout_seconds: float | None) -> None:
        """Waits for the next change; raises asyncio.TimeoutError after `timeout_seconds`."""
        await asyncio.wait_for(self._changed.wait(), timeout_seconds)
        self._changed.clear()


class Admission:
    """`num_places` requests run, `num_waiting` more wait.

    Every joined ticket must leave, whatever happened to it.
    """

    def __init__(self, num_places: int, num_waiting: int) -> None:
        self.num_places = num_places
        self.capacity = num_waiting
        self._waiting: list[Ticket] = []
        self._running: list[Ticket] = []
        self._last_served: dict[str, int] = {}
        self._last_seen: dict[str, float] = {}
        self._numbers = itertools.count(1)
        self._service_seconds = 1.0

    @property
    def num_running(self) -> int:
        """Requests that hold a place."""
        return len(self._running)

    @property
    def num_waiting(self) -> int:
        """Requests that wait for one."""
        return len(self._waiting)

    def join(self, who: str, *, priority: int = 0, max_running: int | None = None) -> Ticket:
        """A ticket, perhaps admitted already. Raises Busy when every waiting place is taken."""
        ticket = Ticket(who, priority, max_running, next(self._numbers))
        self._last_seen[who] = ticket.arrived
        self._waiting.append(ticket)
        self._dispatch()
        if len(self._waiting) > self.capacity and not ticket.is_admitted:
            self._push_out(ticket)
        return ticket

    def check(self, who: str) -> None:
        """Raises Busy when a ticket for `who` would be refused now; saves work for nothing."""
        if len(self._running) < self.num_places or len(self._waiting) < self.capacity:
            return
        counts = Counter(ticket.who for ticket in self._waiting)
        if max(counts.values(), default=0) <= counts[who] + 1:
            raise self._busy()

    async def positions(
        self, ticket: Ticket, *, deadline: float | None = None
    ) -> AsyncIterator[int]:
        """The ticket's position as it changes, until it is admitted.

        Raises Busy when the ticket is pushed out and DeadlineExceeded at the monotonic `deadline`.
        """
        last = 0
        while not ticket.is_admitted:
            if ticket.is_refused:
                raise self._busy()
            if ticket.position != last:
                last = ticket.position
                yield last
            now = time.monotonic()
            if deadline is not None and now >= deadline:
                raise DeadlineExceeded("the deadline passed while the request waited")
            remaining = math.inf if deadline is None else deadline - now
            try:
                await ticket.changed(min(remaining, LATELY_SECONDS))
            except asyncio.TimeoutError:
                self._dispatch()  # a place that was kept free may be free for all by now

    def leave(self, ticket: Ticket) -> None:
        """Gives the place, or the waiting place, back."""
        if ticket in self._running:
            self._running.remove(ticket)
            seconds = time.monotonic() - ticket.admitted
            self._service_seconds += _SMOOTHING * (seconds - self._service_seconds)
        elif ticket in self._waiting:
            self._waiting.remove(ticket)
        self._last_seen[ticket.who] = time.monotonic()
        self._dispatch()

    def retry_after_seconds(self) -> float:
        """When a place should be free, from the measured time of a request."""
        rounds = (len(self._waiting) + 1) / self.num_places
        return min(300.0, max(1.0, rounds * self._service_seconds))

    def _dispatch(self) -> None:
        if not self._waiting:
            return
        running = Counter(ticket.who for ticket in self._running)
        order = self._order(running)
        for ticket in order:
            if len(self._running) >= self.num_places:
                break
            if not self._may_run(ticket, running):
                continue
            self._waiting.remove(ticket)
            self._running.append(ticket)
            running[ticket.who] += 1
            self._last_served[ticket.who] = next(self._numbers)
            ticket.is_admitted, ticket.position = True, 0
            ticket.admitted = time.monotonic()
            ticket.touch()
        for position, ticket in enumerate((t for t in order if not t.is_admitted), 1):
            if ticket.position != position:
                ticket.position = position
                ticket.touch()

    def _may_run(self, ticket: Ticket, running: Counter[str]) -> bool:
        if ticket.max_running is not None and running[ticket.who] >= ticket.max_running:
            return False
        if self._keeps_last_place(ticket.who, running):
            return False
        if ticket.priority == 0:
            return True
        num_batch = sum(other.priority > 0 for other in self._running)
        return num_batch < max(1, self.num_places - 1)

    def _keeps_last_place(self, who: str, running: Counter[str]) -> bool:
        """Whether the only free place is kept for another key that has none."""
        if self.num_places - len(self._running) > 1 or not running[who]:
            return False
        since = time.monotonic() - LATELY_SECONDS
        for other, seen in list(self._last_seen.items()):
            if seen < since and not running[other]:
                del self._last_seen[other]
        return any(other != who and not running[other] for other in self._last_seen)

    def _order(self, running: Counter[str]) -> list[Ticket]:
        """The waiting tickets in the order in which they would be served."""
        order: list[Ticket] = []
        for priority in sorted({ticket.priority for ticket in self._waiting}):
            lines: dict[str, list[Ticket]] = {}
            for ticket in self._waiting:
                if ticket.priority == priority:
                    lines.setdefault(ticket.who, []).append(ticket)
            taken = Counter(running)
            served = dict(self._last_served)
            turn = next(self._numbers)
            while lines:
                who = min(lines, key=lambda key: (taken[key], served.get(key, 0)))
                order.append(lines[who].pop(0))
                taken[who] += 1
                served[who] = turn = turn + 1
                if not lines[who]:
                    del lines[who]
        return order

    def _push_out(self, newcomer: Ticket) -> None:
        counts = Counter(ticket.who for ticket in self._waiting)
        heaviest, most = counts.most_common(1)[0]
        loser = newcomer
        if most > counts[newcomer.who]:
            loser = max((t for t in self._waiting if t.who == heaviest), key=lambda t: t.number)
        self._waiting.remove(loser)
        if loser is newcomer:
            raise self._busy()
        loser.is_refused = True
        loser.touch()

    def _busy(self) -> Busy:
        return Busy(
            f"all {self.num_places} places and {self.capacity} waiting places are taken; "
            "try again later",
            retry_after_seconds=self.retry_after_seconds(),
        )
