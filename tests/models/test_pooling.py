from __future__ import annotations

import math

import torch

from service.models.base import Chunk, State
from service.models.pooling import pool

E = torch.tensor(  # [m, t, d]: everything is negative, so that a maximum from 0 would show
    [
        [[-4.0, -1.0], [-2.0, -3.0], [-5.0, -7.0], [-9.0, -8.0]],
        [[-1.0, -6.0], [-3.0, -2.0], [-8.0, -4.0], [-2.0, -5.0]],
    ]
)
PRESENT = torch.tensor([[True, True, False, True], [False, False, True, True]])


def _chunk(offsets: list[int], fresh: bool, reads: list[int]) -> Chunk:
    count = len(offsets) - 1
    slots = torch.arange(count) + 1
    return Chunk(
        inputs={},
        present=PRESENT,
        offsets=torch.tensor(offsets),
        slots=slots,
        fresh=torch.full((count,), fresh),
        reads=torch.tensor(reads, dtype=torch.int64),
    )


def _poisoned(rows: int) -> State:
    return {
        "pool_max": torch.full((rows, 2, 2), math.inf),
        "pool_sum": torch.full((rows, 2, 2), math.nan),
        "pool_count": torch.full((rows, 2), 99),
    }


def test_maximum_and_mean_are_over_present_steps_only() -> None:
    pooled = pool(E, PRESENT, _chunk([0, 4], True, [1, 3]), _poisoned(2))
    assert pooled.heard.tolist() == [[True, False], [True, True]]
    assert pooled.maximum[0, 0].tolist() == [-2, -1]
    assert pooled.maximum[1].tolist() == [[-2, -1], [-2, -4]]
    assert pooled.mean[0, 0].tolist() == [-3, -2]
    assert pooled.mean[1].tolist() == [[-5, -4], [-5, -4.5]]


def test_the_state_carries_over_chunks_and_is_one_row_a_sequence() -> None:
    whole, state = _poisoned(3), _poisoned(3)
    expected = pool(E, PRESENT, _chunk([0, 4], True, [3]), whole)
    pool(E[:, :1], PRESENT[:, :1], _chunk([0, 1], True, []), state)
    rest = pool(E[:, 1:], PRESENT[:, 1:], _chunk([0, 3], False, [2]), state)
    assert torch.equal(rest.maximum, expected.maximum)
    assert torch.equal(rest.mean, expected.mean)
    for name, tensor in state.items():
        assert torch.equal(tensor[1], whole[name][1])
        assert torch.equal(tensor[[0, 2]].nan_to_num(), _poisoned(3)[name][[0, 2]].nan_to_num())


def test_sequences_of_a_pack_do_not_mix() -> None:
    packed = pool(E, PRESENT, _chunk([0, 2, 4], True, [1, 3]), None)
    second = pool(E[:, 2:], PRESENT[:, 2:], _chunk([0, 2], True, [1]), None)
    assert torch.equal(packed.maximum[1], second.maximum[0])
    assert torch.equal(packed.mean[1], second.mean[0])
    assert packed.heard.tolist() == [[True, False], [True, True]]
