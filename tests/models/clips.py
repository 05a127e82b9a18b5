"""Random packed clips for a model, and running them from poisoned slots in any cuts."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from hypothesis import strategies as st
from torch import Tensor, nn

from service.models.base import Chunk, RecurrentModel, State
from service.models.coupled_mamba import CoupledMamba
from tests.checkpoints import WIDTHS

SPARE_ROWS = 2


@dataclass(frozen=True)
class Clips:
    """Packed sequences of text, audio and video. Rows of absent modalities are NaN: nothing may read them."""

    inputs: dict[str, Tensor]
    present: Tensor
    lengths: list[int]

    def to(self, dtype: torch.dtype) -> Clips:
        return Clips({name: rows.to(dtype) for name, rows in self.inputs.items()}, self.present, self.lengths)

    def rows(self, rows: Tensor) -> Clips:
        """One sequence of these rows."""
        return Clips({name: values[rows] for name, values in self.inputs.items()}, self.present[:, rows], [len(rows)])

    def alone(self) -> list[Clips]:
        return [self.rows(rows) for rows in torch.arange(sum(self.lengths)).split(self.lengths)]


def make_clips(lengths: Sequence[int], present: Tensor, seed: int) -> Clips:
    g = torch.Generator().manual_seed(seed)
    inputs = {}
    for row, (name, width) in enumerate(WIDTHS.items()):
        values = torch.randn(sum(lengths), width, generator=g, dtype=torch.float64)
        inputs[name] = torch.where(present[row, :, None], values, torch.nan)
    return Clips(inputs, present, list(lengths))


@st.composite
def clips(draw: st.DrawFn, *, dense: bool = False) -> Clips:
    """1 to 3 clips of 1 to 9 steps (longer than the convolution's window), each with some input somewhere."""
    lengths = draw(st.lists(st.integers(1, 9), min_size=1, max_size=3))
    m, t = len(WIDTHS), sum(lengths)
    everywhere = st.just([True] * (m * t))
    patterns = everywhere if dense else st.lists(st.booleans(), min_size=m * t, max_size=m * t) | everywhere
    present = torch.tensor(draw(patterns)).view(m, t)
    for heard in present.split(lengths, dim=1):
        if not heard.any():
            heard[draw(st.integers(0, m - 1)), -1] = True
    return make_clips(lengths, present, draw(st.integers(0, 999)))


cuts = st.lists(st.integers(0, 9), max_size=9)  # of every clip; equal ones make empty chunks


def poisoned_state(model: RecurrentModel[Chunk], rows: int, dtype: torch.dtype) -> State:
    """A pool whose rows hold what `fresh` must not let through; floats in `dtype`."""
    state = {}
    for name, tensor in model.state_tensors().items():
        if tensor.dtype.is_floating_point:
            state[name] = torch.full((rows, *tensor.shape), torch.nan, dtype=dtype)
        else:
            state[name] = torch.full((rows, *tensor.shape), 1, dtype=tensor.dtype)
    return state


def run_clips(
    model: RecurrentModel[Chunk], given: Clips, at: Sequence[int] = (), *, read_all: bool = False, alone: bool = False
) -> Tensor:
    """Run the clips side by side in chunks that end at the steps `at` -> outputs at each clip's end (or every row)."""
    dtype = next(model.parameters()).dtype if isinstance(model, nn.Module) else torch.float32
    count = len(given.lengths)
    begins = torch.tensor([0, *given.lengths]).cumsum(0).tolist()
    bounds = [[0, *sorted(min(cut, length) for cut in at), length] for length in given.lengths]
    slots = torch.arange(count).flip(0) + 1
    state = poisoned_state(model, count + SPARE_ROWS, dtype)
    read_rows, outputs = [], []
    for turn in range(len(at) + 1):
        parts = [torch.arange(begins[i] + b[turn], begins[i] + b[turn + 1]) for i, b in enumerate(bounds)]
        rows = torch.cat(parts)
        last = torch.isin(rows, torch.tensor(begins[1:]) - 1)
        reads = torch.arange(len(rows)) if read_all else torch.nonzero(last).squeeze(1)
        chunk = Chunk(
            inputs={name: values[rows].to(dtype) for name, values in given.inputs.items()},
            present=given.present[:, rows],
            offsets=torch.tensor([0, *(len(part) for part in parts)]).cumsum(0),
            slots=slots,
            fresh=torch.full((count,), turn == 0),
            reads=reads,
            alone=alone,
        )
        outputs.append(model.run(chunk, state))
        read_rows.append(rows[reads])
    for tensor in state.values():  # rows of nobody
        assert bool((tensor[[0, -1]].isnan() if tensor.dtype.is_floating_point else tensor[[0, -1]] == 1).all())
    return torch.cat(outputs)[torch.cat(read_rows).argsort()]


def forward_clips(model: CoupledMamba, given: Clips) -> Tensor:
    """The training path on whole clips -> [b, outputs], columns in the config's order."""
    inputs = given.to(next(model.parameters()).dtype).inputs
    named = model(inputs, given.present, torch.tensor([0, *given.lengths]).cumsum(0))
    return torch.cat([named[name].view(len(given.lengths), -1) for name in model.config.outputs], dim=1)
