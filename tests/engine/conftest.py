"""Engines over the tiny generative model, stopped when their test ends."""

from __future__ import annotations

from collections.abc import Generator
from typing import Any

import pytest

from tests.engine.generations import MODEL, TRIO, Generations, Start


@pytest.fixture
def start() -> Generator[Start, None, None]:
    """Starts an engine: of MODEL over TRIO with small limits, or of what is given."""
    benches = []

    def start(model: Any = MODEL, **limits: Any) -> Generations:
        vocabulary = limits.pop("vocabulary", TRIO)
        benches.append(Generations(model, vocabulary, **limits))
        return benches[-1]

    yield start
    for bench in benches:
        bench.engine.stop()
