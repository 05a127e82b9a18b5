"""Who goes first: weighted fair queueing over API keys and priorities. Bookkeeping only.

A flow is the requests of one key at one priority. Flows that have work share slots, and the steps of prompts, by their
weights, whatever each of them asks for; within a flow, requests go in order of arrival and take turns.

    slots   go to the flow that holds the fewest for its weight
    steps   go to the flow that has been served the fewest for its weight (a virtual time: steps / weight)

So a flow with a thousand requests delays another's one by no more than their shares, and the lowest priority is slow
and never starved. A flow that had nothing to do saves nothing up: it begins again where the others are.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any

from service.engine.request import Request
from service.owner import Owner, Priority

WEIGHTS = {Priority.BATCH: 1, Priority.INTERACTIVE: 16}


@dataclass(eq=False)
class Flow:
    """served: virtual time. rows: slots that its running requests hold."""

    weight: int
    waiting: deque[Request[Any]] = field(default_factory=deque)
    running: list[Request[Any]] = field(default_factory=list)
    served: float = 0.0
    rows: int = 0

    @property
    def active(self) -> bool:
        """Whether it has requests."""
        return bool(self.waiting or self.running)

    def serve(self, steps: int) -> None:
        """Account for steps that run."""
        self.served += steps / self.weight

    def seat(self, request: Request[Any], slots: tuple[int, ...]) -> None:
        """Give its first waiting request slots."""
        assert self.waiting[0] is request, "in order of arrival"
        self.waiting.popleft()
        request.slots = slots
        self.running.append(request)
        self.rows += len(slots)

    def unseat(self, request: Request[Any]) -> tuple[int, ...]:
        """Take a running request's slots from it -> those slots."""
        self.running.remove(request)
        slots, request.slots = request.slots, ()
        self.rows -= len(slots)
        return slots


class Flows:
    """All flows. There are at most as many as keys and priorities."""

    def __init__(self) -> None:
        self._flows: dict[tuple[str, Priority], Flow] = {}

    def __iter__(self) -> Iterator[Flow]:
        return iter(list(self._flows.values()))  # a copy: others count requests while one is added

    def of(self, owner: Owner) -> Flow:
        """The owner's flow at the request's priority."""
        flow = self._flows.get(at := (owner.key, owner.priority))
        if flow is None:
            flow = self._flows[at] = Flow(WEIGHTS[owner.priority])
        return flow

    def add(self, request: Request[Any]) -> None:
        """Put a request at the end of its flow."""
        flow = self.of(request.owner)
        if not flow.active:
            others = [other.served for other in self if other.active]
            if not others:
                for other in self:
                    other.served = 0.0
            flow.served = max(flow.served, min(others, default=0.0))
        flow.waiting.append(request)

    def next_to_seat(self) -> Flow | None:
        """Whose first waiting request is to have slots next."""
        waiting = [flow for flow in self if flow.waiting]
        if len(waiting) < 2:
            return waiting[0] if waiting else None
        return min(waiting, key=lambda f: (f.rows / f.weight, f.served, f.waiting[0].submitted_s))

    def to_unseat(self, flow: Flow, slots: int) -> list[Request[Any]]:
        """Whom to take `slots` slots from for a flow's first waiting request; nobody where it is not worth it.

        They are the latest of the flows that hold the most for their weight, as long as those still hold no less for it
        than this flow then does: so nobody is unseated for one who would be unseated for him.
        """
        wanted = (flow.rows + flow.waiting[0].program.rows) / flow.weight
        rows = {other: other.rows for other in self if other is not flow}
        left = {other: list(other.running) for other in rows}
        chosen: list[Request[Any]] = []
        while slots > 0:
            held = [other for other in rows if left[other]]
            richest = max(held, key=lambda other: rows[other] / other.weight, default=None)
            if richest is None:
                return []
            latest = max(left[richest], key=lambda request: request.submitted_s)
            left[richest].remove(latest)
            rows[richest] -= len(latest.slots)
            slots -= len(latest.slots)
            if rows[richest] / richest.weight < wanted:
                return []
            chosen.append(latest)
        return chosen


def least_served(flows: Iterable[Flow]) -> Flow:
    """The flow whose turn it is."""
    return min(flows, key=lambda flow: flow.served)
