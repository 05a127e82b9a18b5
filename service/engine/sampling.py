"""One token from one row of logits. All arithmetic on probabilities is float64, over the allowed ids only.

guidance -> grammar -> repetition penalty -> temperature -> top-k -> top-p -> inverse of the cumulative sum, by id
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from service.engine.grammar import Allowed

Logits = NDArray[np.float32] | NDArray[np.float64]
Ids = NDArray[np.int64]

BLOCK = 256  # weights summed at a time
FIRST_LOOK = 64  # candidates among which top-p is looked for at first


@dataclass(frozen=True)
class Draw:
    """What one draw depends on beside the logits; the fields are those of `SamplingParams` for one modality.

    uniform    in [0, 1)
    penalised  ids that the repetition penalty strikes
    guided_by  the row of the request whose logits are the unconditional ones, or None
    """

    allowed: Allowed
    uniform: float
    temperature: float
    top_p: float = 1.0
    top_k: int = 0
    penalty: float = 1.0
    penalised: Iterable[int] = ()
    logprobs: int | None = None
    scale: float = 1.0
    guided_by: int | None = None


@dataclass(frozen=True)
class Drawn:
    """A token, and whether it was the only one; its log probability and the likeliest ids' if they were asked for."""

    token: int
    forced: bool = False
    logprob: float | None = None
    top: tuple[tuple[int, float], ...] = ()


def uniform(seed: int, choice: int, position: int) -> float:
    """The number in [0, 1) of a choice's token at a position, by Philox 4x64: the same whatever else is drawn."""
    bits = np.random.Philox(key=_words(seed, choice), counter=_words(position, 0, 0, 0)).random_raw()
    return float(bits >> 11) * 2.0**-53


def draw(spec: Draw, logits: NDArray[np.float32], unguided: NDArray[np.float32] | None = None) -> Drawn | None:
    """The token that `spec` takes from logits [vocabulary], or None where they are not finite.

    unguided [vocabulary]: the unconditional twin's logits, with which guidance is
        unguided + scale * (logits - unguided)
    """
    if not np.isfinite(logits).all() or not (unguided is None or np.isfinite(unguided).all()):
        return None
    id_at, forced = spec.allowed.id_at, spec.allowed.count == 1
    values: Logits = _taken(logits, spec.allowed)
    if unguided is not None:
        base = _taken(unguided, spec.allowed).astype(np.float64)
        values = base + spec.scale * (values - base)
    place = _place(_penalised(values, spec), spec)
    if spec.logprobs is None:
        return Drawn(id_at(place), forced)
    logprobs = _log_softmax(values.astype(np.float64))
    likeliest = _largest(logprobs, min(spec.logprobs, len(logprobs)))
    likeliest = likeliest[np.argsort(-logprobs[likeliest], kind="stable")]
    top = tuple((id_at(int(i)), float(logprobs[i])) for i in likeliest)
    return Drawn(id_at(place), forced, float(logprobs[place]), top)


def _taken(logits: NDArray[np.float32], allowed: Allowed) -> NDArray[np.float32]:
    """The allowed ids' logits, in order of ids."""
    parts = [logits[ids.start : ids.stop] for ids in allowed.ranges]
    return parts[0] if len(parts) == 1 else np.concatenate(parts)


def _penalised(values: Logits, spec: Draw) -> Logits:
    """Logits after the repetition penalty: over 0 divided, under 0 multiplied (CTRL, arXiv 1909.05858)."""
    if spec.penalty == 1.0:
        return values
    ids, values = np.fromiter(spec.penalised, np.int64), values.astype(np.float64)
    begin = 0
    for part in spec.allowed.ranges:
        places = ids[(ids >= part.start) & (ids < part.stop)] - part.start + begin
        struck = values[places]
        values[places] = np.where(struck > 0, struck / spec.penalty, struck * spec.penalty)
        begin += len(part)
    return values


def _place(values: Logits, spec: Draw) -> int:
    """Which of the candidates is drawn. values [candidates], in order of ids."""
    if spec.temperature == 0:
        return int(values.argmax())  # the first of equals
    places = _largest(values, spec.top_k) if 0 < spec.top_k < len(values) else None
    kept = (values if places is None else values[places]).astype(np.float64)
    with np.errstate(over="ignore"):  # next to greedy: the others' weights are 0
        weights = np.exp((kept - kept.max()) / spec.temperature)
    if spec.top_p < 1:
        inside = _nucleus(weights, spec.top_p)
        places = inside if places is None else places[inside]
        weights = weights[inside]
    drawn = _inverse(weights, spec.uniform)
    return drawn if places is None else int(places[drawn])


def _inverse(weights: NDArray[np.float64], share: float) -> int:
    """The first place up to which the weights sum to more than `share` of the total.

    By blocks, then inside of one: a cumulative sum of a whole vocabulary costs more than its exponentials.
    """
    reached = np.cumsum(np.add.reduceat(weights, np.arange(0, len(weights), BLOCK)))
    wanted = share * reached[-1]
    block = int(np.searchsorted(reached, wanted, "right"))
    begin = block * BLOCK
    inside = np.cumsum(weights[begin : begin + BLOCK]) + (reached[block - 1] if block else 0.0)
    place = begin + int(np.searchsorted(inside, wanted, "right"))
    # Rounding can put `wanted` at the very end; the last id that has weight is meant then.
    return place if place < begin + len(inside) else int(np.flatnonzero(weights[: begin + BLOCK])[-1])


def _nucleus(weights: NDArray[np.float64], mass: float) -> Ids:
    """The places, ascending, of the smallest set that holds `mass` of the weights; ties go to the lower id."""
    wanted = mass * weights.sum()
    look = FIRST_LOOK
    while True:
        places = _largest(weights, min(look, len(weights)))
        order = np.argsort(-weights[places], kind="stable")
        reached = np.cumsum(weights[places[order]])
        if reached[-1] >= wanted or look >= len(weights):
            return np.sort(places[order[: int(np.searchsorted(reached, wanted, "left")) + 1]])
        look *= 8


def _largest(values: NDArray[Any], count: int) -> Ids:
    """The places, ascending, of the `count` largest values; ties go to the lower place."""
    if count == len(values):
        return np.arange(count)
    if count == 0:
        return np.arange(0)
    least = np.partition(values, len(values) - count)[len(values) - count]
    over = np.flatnonzero(values > least)
    return np.sort(np.concatenate([over, np.flatnonzero(values == least)[: count - len(over)]]))


def _log_softmax(values: NDArray[np.float64]) -> NDArray[np.float64]:
    shifted = values - values.max()
    logarithms: NDArray[np.float64] = shifted - np.log(np.exp(shifted).sum())
    return logarithms


def _words(*values: int) -> NDArray[np.uint64]:
    return np.array(values, np.uint64)
