"""The compiled Coupled Mamba: the reference's answers, and the same bits whatever it is batched with."""

from __future__ import annotations

from functools import cache
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from service.kernels.cpu import INSTRUCTION_SETS
from service.models.base import Chunk
from service.models.coupled_mamba_cpu import CoupledMambaProgram
from tests.bits import bits
from tests.checkpoints import model_config, random_model
from tests.models.clips import clips, cuts, make_clips, poisoned_state, run_clips
from tests.models.coupled_programs import COUPLINGS, FORMS, WRONG, advance, assert_refused

every_set = pytest.mark.parametrize("isa", INSTRUCTION_SETS)
every_coupling = pytest.mark.parametrize("coupling", COUPLINGS)
every_dtype = pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)


@cache
def program(
    coupling: str,
    isa: str = INSTRUCTION_SETS[-1],
    form: int = 0,
    block_rows: int = 512,
    dtype: torch.dtype = torch.float32,
) -> CoupledMambaProgram:
    model = random_model(model_config(coupling, **FORMS[form]))
    return CoupledMambaProgram(model, isa=isa, block_rows=block_rows, dtype=dtype)


@every_set
@every_coupling
@pytest.mark.parametrize("form", range(len(FORMS)))
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 2e-5), (torch.bfloat16, 5e-2)], ids=str)
@settings(max_examples=8)
@given(data=st.data(), at=cuts)
def test_equals_the_reference_in_float64(
    isa: str,
    coupling: str,
    form: int,
    dtype: torch.dtype,
    tolerance: float,
    data: st.DataObject,
    at: list[int],
) -> None:
    batch = data.draw(clips(dense=coupling == "layers"))
    model = random_model(model_config(coupling, **FORMS[form])).double()
    expected = run_clips(model, batch, read_all=True)
    outputs = run_clips(program(coupling, isa, form, 5, dtype), batch, at, read_all=True)  # blocks cut the clips
    scale = max(1.0, float(expected.nan_to_num().abs().max()))
    torch.testing.assert_close(outputs.double(), expected, rtol=tolerance, atol=tolerance * scale, equal_nan=True)


@every_set
@every_coupling
@every_dtype
@settings(max_examples=15)
@given(data=st.data(), at=cuts)
def test_alone_in_a_batch_and_in_chunks_it_is_the_same_bits(
    isa: str, coupling: str, dtype: torch.dtype, data: st.DataObject, at: list[int]
) -> None:
    batch = data.draw(clips(dense=coupling == "layers"))
    executable = program(coupling, isa, dtype=dtype)
    together = run_clips(executable, batch, read_all=True)
    for clip, expected in zip(batch.alone(), together.split(batch.lengths), strict=True):
        assert bits(run_clips(executable, clip, at, read_all=True)) == bits(expected)


@every_coupling
@pytest.mark.parametrize("form", range(len(FORMS)))
@settings(max_examples=8)
@given(data=st.data(), at=cuts)
def test_a_step_by_itself_is_the_references_and_changes_nothing_else(
    coupling: str, form: int, data: st.DataObject, at: list[int]
) -> None:
    batch, executable = data.draw(clips(dense=coupling == "layers")), program(coupling, form=form, block_rows=5)
    model = random_model(model_config(coupling, **FORMS[form])).double()
    expected = run_clips(model, batch, read_all=True, alone=True)
    outputs = run_clips(executable, batch, at, read_all=True, alone=True)
    scale = max(1.0, float(expected.nan_to_num().abs().max()))
    torch.testing.assert_close(outputs.double(), expected, rtol=2e-5, atol=2e-5 * scale, equal_nan=True)
    pooled = run_clips(executable, batch, at, read_all=True)
    assert bits(outputs[:, : pooled.shape[1]]) == bits(pooled)


@every_coupling
def test_the_state_that_is_left_is_the_references(coupling: str) -> None:
    present = torch.ones(3, 7, dtype=torch.bool)
    if coupling != "layers":
        present[1], present[0, 4:] = False, False  # one never starts, one falls silent
    batch = make_clips([7], present, seed=3)
    model, executable = random_model(model_config(coupling)), program(coupling)
    expected = advance(model, batch)
    for name, tensor in advance(executable, batch).items():
        torch.testing.assert_close(tensor, expected[name], rtol=1e-5, atol=1e-5, equal_nan=True, msg=name)


@every_coupling
@every_dtype
def test_neither_threads_nor_blocks_change_a_bit(coupling: str, dtype: torch.dtype) -> None:
    model = random_model(model_config(coupling, d_model=160, d_state=8, d_head=40))
    batch = make_clips([40, 3, 25], torch.ones(3, 68, dtype=torch.bool), seed=2)
    answers = set()
    for threads, block_rows in ((1, 512), (2, 512), (5, 512), (2, 16), (1, 1)):
        executable = CoupledMambaProgram(model, threads=threads, block_rows=block_rows, dtype=dtype)
        answers.add(bits(run_clips(executable, batch, read_all=True)))
    assert len(answers) == 1


@every_set
@every_coupling
@every_dtype
def test_a_long_clip_among_others_is_the_same_bits_in_chunks_of_any_size(
    isa: str, coupling: str, dtype: torch.dtype
) -> None:
    # More steps than a block has rows, modalities that come and go, sums longer than a slice of a panel of weights.
    model = random_model(model_config(coupling, d_model=80, n_layers=1))
    executable = CoupledMambaProgram(model, isa=isa, dtype=dtype)
    lengths = [3, 280, 6]
    present = torch.ones(3, sum(lengths), dtype=torch.bool)
    if coupling != "layers":
        present = torch.rand(3, sum(lengths), generator=torch.Generator().manual_seed(3)) < 0.6
        present[0, [0, 3, 283]] = True
        present[2, 3:200] = False  # heard late
    batch = make_clips(lengths, present, seed=4)
    every = run_clips(executable, batch, read_all=True).split(lengths)
    for clip, expected, at in zip(batch.alone(), every, ([1], [1, 9, 128, 139, 279], [0, 2, 2]), strict=True):
        assert bits(run_clips(executable, clip, at, read_all=True)) == bits(expected)


@pytest.mark.parametrize("modalities", [1, 2, 5, 8])
@pytest.mark.parametrize("coupling", ["mean", "learned"])
def test_any_number_of_modalities(modalities: int, coupling: str) -> None:
    config = model_config(coupling, modalities={f"m{i}": 3 + i for i in range(modalities)})
    model = random_model(config)
    generator = torch.Generator().manual_seed(modalities)
    present = torch.rand(modalities, 9, generator=generator) < 0.7
    present[0, 0] = True
    chunk = Chunk(
        inputs={name: torch.randn(9, width, generator=generator) for name, width in config.modalities.items()},
        present=present,
        offsets=torch.tensor([0, 9]),
        slots=torch.tensor([0]),
        fresh=torch.tensor([True]),
        reads=torch.tensor([8, 2, 8]),
    )
    expected = model.run(chunk, poisoned_state(model, 1, torch.float32))
    executable = CoupledMambaProgram(model)
    outputs = executable.run(chunk, poisoned_state(executable, 1, torch.float32))
    torch.testing.assert_close(outputs, expected, rtol=2e-5, atol=2e-5)


@pytest.mark.parametrize("form", range(len(FORMS)))
def test_bf16_rounds_what_the_maps_multiply_and_not_the_state(form: int) -> None:
    model = random_model(model_config("layers", **FORMS[form]))
    batch = make_clips([6], torch.ones(3, 6, dtype=torch.bool), seed=1)
    whole, half = (CoupledMambaProgram(model, dtype=dtype) for dtype in (torch.float32, torch.bfloat16))
    assert half.state_tensors() == whole.state_tensors()
    expected, outputs = run_clips(whole, batch), run_clips(half, batch)
    assert bits(expected) != bits(outputs)
    for name, tensor in model.state_dict().items():  # weights that bf16 holds are as good as any
        if name.endswith("weight") and not name.endswith(("conv_weight", "norm.weight", "norm_f.weight")):
            tensor.copy_(tensor.bfloat16())
    assert bits(run_clips(CoupledMambaProgram(model, dtype=torch.bfloat16), batch)) == bits(outputs)


@pytest.mark.parametrize(("name", "wrong"), WRONG)
def test_a_wrong_chunk_is_refused_before_anything_is_written(name: str, wrong: Any) -> None:
    assert_refused(program("mean"), name, wrong)
