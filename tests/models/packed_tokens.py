"""Chunks of random prompts for the programs, poisoned pools, and what holds of every program."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from itertools import accumulate
from typing import Any

import pytest
import torch
from torch import Tensor

from service.models.base import State, TokenChunk
from service.models.mixture_of_mamba import MixtureOfMamba
from tests.bits import bits
from tests.generative import VOCABULARY

SMALL: dict[str, Tensor] = {
    "tokens": torch.tensor([0, 1, 2]),
    "offsets": torch.tensor([0, 2, 3]),
    "slots": torch.tensor([0, 1]),
    "fresh": torch.tensor([True, True]),
    "reads": torch.tensor([2]),
}
WRONG = [  # in place of what SMALL has
    ("tokens", torch.tensor([0, 1, VOCABULARY.size])),
    ("tokens", torch.tensor([0, 1, -1])),
    ("tokens", torch.tensor([0.0, 1.0, 2.0])),
    ("tokens", torch.tensor([[0], [1], [2]])),
    ("offsets", torch.tensor([0, 2, 4])),
    ("offsets", torch.tensor([0, 2])),
    ("slots", torch.tensor([1, 1])),
    ("slots", torch.tensor([0, 3])),
    ("fresh", torch.tensor([1, 1])),
    ("reads", torch.tensor([3])),
    ("reads", torch.tensor([-1])),
]
BROKEN: list[Callable[[State], State]] = [
    lambda state: {"conv": state["conv"]},
    lambda state: {**state, "ssm": state["ssm"].double()},
    lambda state: {**state, "ssm": state["ssm"][:2]},
]


def poisoned(executable: Any, rows: int, dtype: torch.dtype = torch.float32) -> State:
    return {n: torch.full((rows, *t.shape), torch.nan, dtype=dtype) for n, t in executable.state_tensors().items()}


def chunk_of(parts: Sequence[Tensor], slots: Sequence[int], fresh: Sequence[bool]) -> TokenChunk:
    tokens = torch.cat([*parts, torch.empty(0, dtype=torch.int64)])
    return TokenChunk(
        tokens=tokens,
        offsets=torch.tensor([0, *accumulate(len(part) for part in parts)]),
        slots=torch.tensor(slots),
        fresh=torch.tensor(fresh),
        reads=torch.arange(len(tokens)),
    )


def prompts(lengths: Sequence[int], seed: int = 0) -> list[Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return [torch.randint(0, VOCABULARY.size, (length,), generator=generator) for length in lengths]


def assert_equals_reference(
    executable: Any, model: MixtureOfMamba, lengths: Sequence[int], dtype: torch.dtype, tolerance: float
) -> None:
    """Five sequences, the second empty and the last one that goes on, give what the model does in float64.

    The executable was made of the model, with weights of `dtype`; the model is rounded and widened here.
    """
    if dtype == torch.bfloat16:  # what is rounded anyway is rounded on both sides; activations are on one only
        for name, tensor in model.state_dict().items():
            if name.endswith("_proj") or name in ("embedding", "head"):
                tensor.copy_(tensor.bfloat16())
    model.double()
    state, expected_state = poisoned(executable, 6), poisoned(model, 6, torch.float64)
    for name in state:  # of a sequence that goes on
        values = torch.randn(state[name][5].shape, generator=torch.Generator().manual_seed(1))
        state[name][5], expected_state[name][5] = values, values.double()
    chunk = chunk_of(prompts(lengths), [4, 1, 0, 2, 5], [True, True, True, True, False])
    logits, expected = executable.run(chunk, state), model.run(chunk, expected_state)
    scale = float(expected.abs().max())
    torch.testing.assert_close(logits.double(), expected, rtol=tolerance, atol=tolerance * scale)
    for name in state:
        scale = float(expected_state[name][[4, 1, 0, 2, 5]].abs().max())
        torch.testing.assert_close(
            state[name].double(), expected_state[name], rtol=tolerance, atol=tolerance * scale, equal_nan=True
        )
        assert state[name][3].isnan().all()  # nobody's
        assert (state[name][1] == 0).all()  # empty and fresh


def assert_reads_in_order(executable: Any, lengths: Sequence[int]) -> None:
    """Reads come as they were asked for: in any order, one twice, or none."""
    chunk = chunk_of(prompts(lengths), range(len(lengths)), [True] * len(lengths))
    every = executable.run(chunk, poisoned(executable, len(lengths)))
    last = len(every) - 1
    for order in (torch.tensor([last, 0, last // 2, last // 2, 1]), torch.empty(0, dtype=torch.int64)):
        some = executable.run(replace(chunk, reads=order), poisoned(executable, len(lengths)))
        assert some.shape == (len(order), VOCABULARY.size)
        assert bits(some) == bits(every[order])


def assert_refused(executable: Any, name: str, wrong: Tensor) -> None:
    """A chunk with a wrong entry is named and writes nothing, and the right one runs after it."""
    state = poisoned(executable, 3)
    with pytest.raises(ValueError, match=name):
        executable.run(TokenChunk(**(SMALL | {name: wrong})), state)
    assert all(tensor.isnan().all() for tensor in state.values())
    executable.run(TokenChunk(**SMALL), state)


def assert_state_refused(executable: Any, broken: Callable[[State], State]) -> None:
    """A state that is not as `state_tensors` says is named."""
    with pytest.raises(ValueError, match="state: ssm"):
        executable.run(chunk_of(prompts([2]), [0], [True]), broken(poisoned(executable, 3)))
