"""An ensemble answers with the mean of its members, each of which runs as it does alone."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from torch import Tensor

from service.models.base import Chunk, State
from service.models.checkpoint import load_checkpoint
from service.models.coupled_mamba_cpu import CoupledMambaProgram
from service.models.ensemble import Ensemble, EnsembleProgram
from service.models.executables import make_executable
from service.models.memory import OutOfMemory
from tests.bits import bits
from tests.checkpoints import build_checkpoint, model_config, random_model
from tests.models.clips import Clips, clips, cuts, make_clips, run_clips
from tests.models.coupled_programs import WRONG, advance, assert_refused, chunk_of
from tests.models.files import edit, refused

MODELS = [random_model(model_config(), seed=seed) for seed in range(3)]
every_backend = pytest.mark.parametrize("backend", ["reference", "cpu"])


def a_clip() -> Clips:
    return make_clips([7], torch.ones(3, 7, dtype=torch.bool), seed=5)


@every_backend
@settings(max_examples=15)
@given(batch=clips(), at=cuts)
def test_the_answer_is_the_mean_of_the_members_whatever_the_chunks(backend: str, batch: Clips, at: list[int]) -> None:
    members = [make_executable(model, backend) for model in MODELS]
    alone = [run_clips(member, batch, read_all=True, alone=True) for member in members]
    answer = run_clips(make_executable(Ensemble(MODELS), backend), batch, at, read_all=True, alone=True)
    torch.testing.assert_close(answer, torch.stack(alone).mean(0), equal_nan=True, rtol=1e-5, atol=1e-5)


@settings(max_examples=15)
@given(batch=clips(), at=cuts)
def test_alone_in_a_batch_and_in_chunks_it_is_the_same_bits(batch: Clips, at: list[int]) -> None:
    program = make_executable(Ensemble(MODELS), "cpu")
    together = run_clips(program, batch, read_all=True)
    for clip, expected in zip(batch.alone(), together.split(batch.lengths), strict=True):
        assert bits(run_clips(program, clip, at, read_all=True)) == bits(expected)


@every_backend
def test_every_member_has_its_own_rows_of_the_slot(backend: str) -> None:
    members = [make_executable(model, backend) for model in MODELS]
    state = advance(EnsembleProgram(members), a_clip())
    assert len(state) == sum(len(member.state_tensors()) for member in members)
    for i, member in enumerate(members):
        for name, rows in advance(member, a_clip()).items():
            assert bits(state[f"{name}.{i}"]) == bits(rows), (name, i)


def test_it_promises_what_its_members_do_and_counts_their_weights() -> None:
    members = [CoupledMambaProgram(model) for model in MODELS]
    program = EnsembleProgram(members)
    assert (program.same_bits, program.isa, program.device) == (True, members[0].isa, torch.device("cpu"))
    assert program.weight_bytes == sum(member.weight_bytes for member in members)
    half = make_executable(Ensemble(MODELS), "cpu", torch.bfloat16, threads=1)
    assert isinstance(half, EnsembleProgram)
    for member in half.members:
        assert isinstance(member, CoupledMambaProgram)
        assert (member.dtype, member.threads) == (torch.bfloat16, 1)
    reference = EnsembleProgram(MODELS)
    assert (reference.same_bits, reference.isa, reference.weight_bytes) == (False, None, None)


@pytest.mark.parametrize(("name", "wrong"), WRONG)
def test_a_wrong_chunk_is_named_and_writes_nothing(name: str, wrong: Any) -> None:
    assert_refused(make_executable(Ensemble(MODELS), "cpu"), name, wrong)


class Short(CoupledMambaProgram):
    """A program that gets no memory."""

    def run(self, chunk: Chunk, state: State) -> Tensor:
        raise OutOfMemory("none is left")


@pytest.mark.parametrize("which", [0, 1])
def test_memory_that_a_later_member_lacks_is_no_reason_to_run_again(which: int) -> None:
    program = EnsembleProgram(
        [Short(model) if i == which else CoupledMambaProgram(model) for i, model in enumerate(MODELS)]
    )
    state = advance(make_executable(Ensemble(MODELS), "cpu"), a_clip())
    with pytest.raises(MemoryError, match="none is left") as refusal:
        program.run(chunk_of(a_clip()), state)
    assert isinstance(refusal.value, OutOfMemory) == (which == 0)


def test_members_of_two_layouts_are_refused() -> None:
    with pytest.raises(ValueError, match="one config"):
        Ensemble([MODELS[0], random_model(model_config(d_model=8))])
    with pytest.raises(ValueError, match="one config"):
        Ensemble([])


def test_a_checkpoint_of_members_is_loaded_as_them(tmp_path: Path) -> None:
    folder = build_checkpoint(tmp_path / "three", members=3)
    checkpoint = load_checkpoint(folder)
    assert checkpoint.config.members == 3
    assert isinstance(checkpoint.model, Ensemble)
    for loaded, model in zip(checkpoint.model.each(), MODELS, strict=True):
        assert all(torch.equal(tensor, loaded.state_dict()[name]) for name, tensor in model.state_dict().items())


def test_a_member_that_is_missing_from_the_file_is_named(tmp_path: Path) -> None:
    folder = build_checkpoint(tmp_path / "three", members=3)

    def spoil(tensors: dict[str, Tensor]) -> None:
        del tensors["members.2.norm_f.bias"]

    edit(folder, spoil)
    assert "missing members.2.norm_f.bias [3, 12]" in refused(load_checkpoint, folder)
