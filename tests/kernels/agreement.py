"""What holds of the ops of every backend: they equal the reference, chunks keep the bits, wrong arguments are named."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest
import torch
from torch import Tensor

from tests.bits import bits
from tests.kernels.cases import Case, assert_untouched, in_chunks, make_case
from tests.kernels.steps import Driven, Op

WRONG = [  # arguments of the coupled scan that `assert_refused` makes
    ("x", torch.zeros(3, 6, 4)),
    ("A", torch.zeros(3, 2, 5)),
    ("started", torch.zeros(5, 2, dtype=torch.bool)),
    ("present", torch.ones(3, 6, dtype=torch.bool)),
    ("offsets", torch.tensor([0, 5, 8])),
    ("offsets", torch.tensor([0, 8, 7])),
    ("offsets", torch.tensor([1, 5, 7])),
    ("slots", torch.tensor([2, 2])),
    ("slots", torch.tensor([2, 5])),
    ("slots", torch.tensor([-1, 2])),
    ("fresh", torch.ones(1, dtype=torch.bool)),
    ("state", torch.zeros(5, 3, 2, 4, dtype=torch.float64)),
    ("state", torch.zeros(5, 3, 4, 2).transpose(2, 3)),
]


def assert_equals_reference(case: Case, driven: Driven, op: Op) -> None:
    """In fp32 the op gives what the reference does in float64, and leaves it; slots of others are untouched."""
    expected_pools, pools = driven.pools(torch.float64), driven.pools(torch.float32)
    before = pools.state.clone()
    expected = in_chunks(driven.step(expected_pools, driven.reference), case.lengths, [])
    y = in_chunks(driven.step(pools, op), case.lengths, [])
    # Relative to the largest: a sum of many terms is as precise as its terms.
    for ours, theirs in ((y, expected), (pools.state[case.slots], expected_pools.state[case.slots])):
        scale = float(theirs.abs().amax()) if theirs.numel() else 1.0
        torch.testing.assert_close(ours.double(), theirs, rtol=2e-6, atol=2e-6 * max(scale, 1e-6))
    assert torch.equal(pools.started, expected_pools.started)
    assert_untouched(pools.state, before, case.slots)


def assert_chunks_keep_bits(case: Case, driven: Driven, op: Op, at: Sequence[int]) -> None:
    """Sequences in chunks that end at the steps `at` give the bits of one pass, and leave them."""
    whole, cut = driven.pools(torch.float32), driven.pools(torch.float32)
    every = in_chunks(driven.step(whole, op), case.lengths, [])
    assert bits(every) == bits(in_chunks(driven.step(cut, op), case.lengths, at))
    assert bits(whole.state) == bits(cut.state)
    assert torch.equal(whole.started, cut.started)


def assert_refused(coupled_scan: Op, name: str, wrong: Tensor) -> None:
    """A coupled scan that names the wrong argument, writes nothing, and runs with the right ones."""
    case = make_case(3, 2, 4, 3, [5, 2], torch.ones(3, 7, dtype=torch.bool), seed=0)
    arguments: dict[str, Any] = {key: getattr(case, key).float() for key in ("x", "dt", "A", "B", "C", "D")}
    arguments |= {"coupling": case.learned, "state": torch.full((5, 3, 2, 4), torch.nan), "slots": case.slots}
    arguments |= {"started": torch.zeros(5, 3, dtype=torch.bool), "offsets": case.offsets, "present": case.present}
    arguments["fresh"] = torch.ones(2, dtype=torch.bool)
    with pytest.raises(ValueError, match=rf"coupled_scan: .*{'dt' if name == 'x' else name}"):
        coupled_scan(**(arguments | {name: wrong}))
    assert arguments["state"].isnan().all()
    assert not arguments["started"].any()
    coupled_scan(**arguments)
