"""The Mixture-of-Mamba of Triton kernels: the reference's answers, and the same bits whatever it is batched with."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from service.models.mixture_of_mamba_triton import MixtureOfMambaTriton
from tests.bits import bits
from tests.generative import VOCABULARY, generative_model
from tests.kernels.triton_device import MARKS
from tests.models.packed_tokens import (
    BROKEN,
    WRONG,
    assert_equals_reference,
    assert_reads_in_order,
    assert_refused,
    assert_state_refused,
    chunk_of,
    poisoned,
    prompts,
)
from tests.models.triton_programs import Anywhere

pytestmark = MARKS
FORMS: list[dict[str, Any]] = [
    {},
    {"split": ("in_proj", "dt_proj"), "n_layers": 1},
    {"split": (), "dt_bias": False, "tied": False, "n_layers": 1},
    {"d_model": 17, "d_inner": 33, "d_state": 5, "d_conv": 3, "dt_rank": 3, "n_layers": 1},
]
DTYPES = pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)


@pytest.mark.parametrize(
    ("form", "dtype", "tolerance"),
    [*((form, torch.float32, 1e-5) for form in range(len(FORMS))), (0, torch.bfloat16, 3e-2)],
    ids=str,
)
def test_equals_the_reference_in_float64(form: int, dtype: torch.dtype, tolerance: float) -> None:
    model = generative_model(**FORMS[form])
    executable = Anywhere(MixtureOfMambaTriton(model, dtype=dtype, block_rows=6))  # blocks cut the sequences
    assert_equals_reference(executable, model, [5, 0, 4, 1, 2], dtype, tolerance)


@DTYPES
def test_step_by_step_in_a_batch_it_is_the_bits_of_one_chunk_alone(dtype: torch.dtype) -> None:
    executable = Anywhere(MixtureOfMambaTriton(generative_model(n_layers=1), dtype=dtype))
    parts, slots = prompts([4, 2, 3], seed=2), [3, 1, 0]
    stepped, logits = poisoned(executable, 6), dict[tuple[int, int], Tensor]()
    for step in range(4):
        live = [i for i, part in enumerate(parts) if len(part) > step]
        rows = [parts[i][step : step + 1] for i in live]
        answers = executable.run(chunk_of(rows, [slots[i] for i in live], [step == 0] * len(live)), stepped)
        logits |= {(i, step): answer for i, answer in zip(live, answers, strict=True)}
    for i, part in enumerate(parts):
        alone = poisoned(executable, 2)
        whole = executable.run(chunk_of([part], [0], [True]), alone)
        assert bits(whole) == bits(torch.stack([logits[i, step] for step in range(len(part))]))
        for name in alone:
            assert bits(alone[name][0]) == bits(stepped[name][slots[i]])
    for name in stepped:  # nobody's, and the scratch row of three sequences in a bucket of four
        assert stepped[name][[2, 4, 5]].isnan().all()


def test_a_step_reads_no_weights_of_a_modality_that_has_no_token() -> None:
    model = generative_model(n_layers=1)
    for name in ("in_proj", "x_proj", "dt_proj", "dt_bias", "out_proj"):
        getattr(model.blocks.layers[0], name)[[0, 2]] = torch.nan
    executable, image = Anywhere(MixtureOfMambaTriton(model)), VOCABULARY.span("image").start
    tokens = [torch.tensor([image]), torch.tensor([image + 1]), torch.tensor([image])]
    assert bool(executable.run(chunk_of(tokens, [2, 0, 1], [True] * 3), poisoned(executable, 4)).isfinite().all())


def test_reads_come_in_the_order_they_were_asked_for() -> None:
    assert_reads_in_order(Anywhere(MixtureOfMambaTriton(generative_model(n_layers=1), block_rows=3)), [3, 2])


@pytest.mark.parametrize(("name", "wrong"), WRONG)
def test_a_wrong_chunk_is_refused_before_anything_is_written(name: str, wrong: Tensor) -> None:
    assert_refused(Anywhere(MixtureOfMambaTriton(generative_model(n_layers=1))), name, wrong)


@pytest.mark.parametrize("broken", BROKEN)
def test_a_state_that_is_not_as_allocated_is_refused(broken: Any) -> None:
    assert_state_refused(Anywhere(MixtureOfMambaTriton(generative_model(n_layers=1))), broken)
