"""The Coupled Mamba of Triton kernels: the reference's answers, and the same bits whatever it is batched with."""

from __future__ import annotations

from functools import cache
from typing import Any

import pytest
import torch
from torch import Tensor

from service.models.coupled_mamba_triton import CoupledMambaTriton
from service.models.ensemble import EnsembleProgram, of_member
from tests.bits import bits
from tests.checkpoints import PARTS, model_config, random_model
from tests.kernels.triton_device import MARKS
from tests.models.clips import Clips, make_clips, run_clips
from tests.models.coupled_programs import COUPLINGS, FORMS, WRONG, advance, assert_refused
from tests.models.triton_programs import Anywhere

pytestmark = MARKS
every_coupling = pytest.mark.parametrize("coupling", COUPLINGS)


@cache
def program(coupling: str, form: int = 0, block_rows: int = 512) -> Any:
    model = random_model(model_config(coupling, **({"n_layers": 1} | FORMS[form])))
    return Anywhere(CoupledMambaTriton(model, block_rows=block_rows))


def some_clips(coupling: str) -> Clips:
    present = torch.rand(3, 7, generator=torch.Generator().manual_seed(1)) < 0.6
    present[:, 4] = torch.tensor([False, True, False])  # the second clip begins with one modality
    return make_clips([4, 3], present | (coupling == "layers"), seed=1)


@pytest.mark.parametrize(
    ("coupling", "form"), [*((coupling, 0) for coupling in COUPLINGS), ("mean", 1), ("learned", 2), ("layers", 1)]
)
def test_equals_the_reference_in_float64(coupling: str, form: int) -> None:
    batch = some_clips(coupling)
    model = random_model(model_config(coupling, **({"n_layers": 1} | FORMS[form]))).double()
    expected = run_clips(model, batch, read_all=True, alone=True)
    outputs = run_clips(program(coupling, form, 5), batch, read_all=True, alone=True)  # blocks cut the clips
    scale = max(1.0, float(expected.nan_to_num().abs().max()))
    torch.testing.assert_close(outputs.double(), expected, rtol=2e-5, atol=2e-5 * scale, equal_nan=True)


def test_members_that_hear_parts_answer_as_the_references_do() -> None:
    whole, batch = model_config(n_layers=1), some_clips("mean")
    models = [random_model(of_member(whole, names), seed=seed) for seed, names in enumerate(PARTS)]
    expected = run_clips(EnsembleProgram(models, whole.modalities, PARTS), batch, read_all=True, alone=True)
    ensemble = EnsembleProgram([CoupledMambaTriton(model) for model in models], whole.modalities, PARTS)
    outputs = run_clips(Anywhere(ensemble), batch, [2], read_all=True, alone=True)
    torch.testing.assert_close(outputs, expected, rtol=2e-5, atol=2e-5, equal_nan=True)


@pytest.mark.parametrize("coupling", ["mean", "learned"])
def test_alone_and_in_chunks_it_is_the_same_bits(coupling: str) -> None:
    batch, executable = some_clips(coupling), program(coupling)
    together = run_clips(executable, batch, read_all=True)
    for clip, expected in zip(batch.alone(), together.split(batch.lengths), strict=True):
        assert bits(run_clips(executable, clip, [1, 2], read_all=True)) == bits(expected)


@pytest.mark.parametrize("coupling", ["sum", "none"])
def test_the_state_that_is_left_is_the_references(coupling: str) -> None:
    present = torch.ones(3, 4, dtype=torch.bool)
    present[1], present[0, 2:] = False, False  # one never starts, one falls silent
    batch = make_clips([4], present, seed=3)
    expected = advance(random_model(model_config(coupling, n_layers=1)), batch)
    for name, tensor in advance(program(coupling), batch).items():
        torch.testing.assert_close(tensor, expected[name], rtol=1e-5, atol=1e-5, equal_nan=True, msg=name)


def test_bf16_is_near_and_rounds_no_state() -> None:
    batch, model = some_clips("mean"), random_model(model_config("mean", n_layers=1))
    expected = run_clips(model, batch)
    outputs = run_clips(Anywhere(CoupledMambaTriton(model, dtype=torch.bfloat16)), batch)
    assert not torch.equal(outputs, expected)
    torch.testing.assert_close(outputs, expected, rtol=5e-2, atol=5e-2 * float(expected.abs().max()))


@pytest.mark.parametrize(("name", "wrong"), WRONG)
def test_a_wrong_chunk_is_refused_before_anything_is_written(name: str, wrong: Any) -> None:
    assert_refused(program("mean"), name, wrong)


def test_more_taps_than_were_built_are_refused() -> None:
    with pytest.raises(ValueError, match=r"model.d_conv: the backend triton has up to 32 taps, got 33"):
        CoupledMambaTriton(random_model(model_config(d_conv=33)))


def test_the_head_names_its_columns() -> None:
    outputs: Tensor = torch.arange(12.0)[None]
    assert {name: part.shape for name, part in program("mean").split(outputs).items()} == {
        "sentiment": (1,),
        "label": (1, 3),
        "emotion": (1, 8),
    }
