"""An ensemble answers with the mean of its members, each of which runs as it does alone."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from torch import Tensor

from service.models.base import Chunk, RecurrentModel, State
from service.models.checkpoint import load_checkpoint
from service.models.coupled_mamba_cpu import CoupledMambaProgram
from service.models.ensemble import Ensemble, EnsembleProgram, of_member
from service.models.executables import make_executable
from service.models.memory import OutOfMemory
from tests.bits import bits
from tests.checkpoints import build_checkpoint, model_config, random_model
from tests.models.clips import Clips, clips, cuts, make_clips, run_clips
from tests.models.coupled_programs import WRONG, advance, assert_refused, chunk_of
from tests.models.files import edit, refused

WHOLE = model_config()
EVERYTHING = list(WHOLE.modalities)
HEARS = {
    "all": [EVERYTHING] * 3,
    "some": [EVERYTHING, ["text", "audio"], ["text", "video"]],
    "one each": [["video"], ["text"], ["audio"]],
}
ENSEMBLES = {
    kind: Ensemble(WHOLE, [random_model(of_member(WHOLE, names), seed=seed) for seed, names in enumerate(hears)])
    for kind, hears in HEARS.items()
}
MODELS = ENSEMBLES["all"].each()
every_backend = pytest.mark.parametrize("backend", ["reference", "cpu"])
every_kind = pytest.mark.parametrize("kind", list(HEARS))


def program_of(members: Sequence[RecurrentModel[Chunk]]) -> EnsembleProgram:
    return EnsembleProgram(members, WHOLE.modalities, HEARS["all"])


def heard_by(names: Sequence[str], batch: Clips) -> Clips:
    """What a member that knows those modalities alone is given."""
    return replace(batch, present=batch.present[[EVERYTHING.index(name) for name in names]])


def a_clip() -> Clips:
    return make_clips([7], torch.ones(3, 7, dtype=torch.bool), seed=5)


@every_kind
@every_backend
@settings(max_examples=15)
@given(batch=clips(), at=cuts)
def test_the_answer_is_the_mean_of_who_heard_something_whatever_the_chunks(
    kind: str, backend: str, batch: Clips, at: list[int]
) -> None:
    ensemble = ENSEMBLES[kind]
    alone = [
        run_clips(make_executable(member, backend), heard_by(names, batch), read_all=True, alone=True)
        for member, names in zip(ensemble.each(), HEARS[kind], strict=True)
    ]
    answer = run_clips(make_executable(ensemble, backend), batch, at, read_all=True, alone=True)
    torch.testing.assert_close(answer, torch.stack(alone).nanmean(0), equal_nan=True, rtol=1e-5, atol=1e-5)


@every_kind
@settings(max_examples=15)
@given(batch=clips(), at=cuts)
def test_alone_in_a_batch_and_in_chunks_it_is_the_same_bits(kind: str, batch: Clips, at: list[int]) -> None:
    program = make_executable(ENSEMBLES[kind], "cpu")
    together = run_clips(program, batch, read_all=True)
    for clip, expected in zip(batch.alone(), together.split(batch.lengths), strict=True):
        assert bits(run_clips(program, clip, at, read_all=True)) == bits(expected)


@every_backend
def test_every_member_has_its_own_rows_of_the_slot(backend: str) -> None:
    members = [make_executable(model, backend) for model in MODELS]
    state = advance(program_of(members), a_clip())
    assert len(state) == sum(len(member.state_tensors()) for member in members)
    for i, member in enumerate(members):
        for name, rows in advance(member, a_clip()).items():
            assert bits(state[f"{name}.{i}"]) == bits(rows), (name, i)


def test_it_promises_what_its_members_do_and_counts_their_weights() -> None:
    members = [CoupledMambaProgram(model) for model in MODELS]
    program = program_of(members)
    assert (program.same_bits, program.isa, program.device) == (True, members[0].isa, torch.device("cpu"))
    assert program.weight_bytes == sum(member.weight_bytes for member in members)
    half = make_executable(ENSEMBLES["all"], "cpu", torch.bfloat16, threads=1)
    assert isinstance(half, EnsembleProgram)
    for member in half.members:
        assert isinstance(member, CoupledMambaProgram)
        assert (member.dtype, member.threads) == (torch.bfloat16, 1)
    reference = program_of(MODELS)
    assert (reference.same_bits, reference.isa, reference.weight_bytes) == (False, None, None)


@every_kind
@pytest.mark.parametrize(("name", "wrong"), WRONG)
def test_a_wrong_chunk_is_named_and_writes_nothing(kind: str, name: str, wrong: Any) -> None:
    assert_refused(make_executable(ENSEMBLES[kind], "cpu"), name, wrong)


class Fixed(CoupledMambaProgram):
    """A program whose answers are given: its rows, as many as a chunk reads."""

    rows: Tensor

    def run(self, chunk: Chunk, state: State) -> Tensor:
        return self.rows[: len(chunk.reads)]


def test_a_neighbour_that_a_member_has_not_heard_changes_no_bit() -> None:
    members = []
    for model, second in zip(ENSEMBLES["some"].each(), (2.0, torch.nan, 3.0), strict=True):
        members.append(Fixed(model))
        members[-1].rows = torch.tensor([[-0.0], [second]])
    program = EnsembleProgram(members, WHOLE.modalities, HEARS["some"])
    state = advance(make_executable(ENSEMBLES["some"], "cpu"), a_clip())
    alone, beside = (program.run(chunk_of(a_clip(), reads=torch.arange(n)), state) for n in (1, 2))
    assert bits(beside[:1]) == bits(alone)
    assert beside[1].item() == 2.5


class Short(CoupledMambaProgram):
    """A program that gets no memory."""

    def run(self, chunk: Chunk, state: State) -> Tensor:
        raise OutOfMemory("none is left")


@pytest.mark.parametrize("which", [0, 1])
def test_memory_that_a_later_member_lacks_is_no_reason_to_run_again(which: int) -> None:
    program = program_of([Short(model) if i == which else CoupledMambaProgram(model) for i, model in enumerate(MODELS)])
    state = advance(make_executable(ENSEMBLES["all"], "cpu"), a_clip())
    with pytest.raises(MemoryError, match="none is left") as refusal:
        program.run(chunk_of(a_clip()), state)
    assert isinstance(refusal.value, OutOfMemory) == (which == 0)


def test_members_of_two_layouts_are_refused() -> None:
    swapped = replace(WHOLE, modalities=dict(reversed(WHOLE.modalities.items())))
    for other in (model_config(d_model=8), of_member(replace(WHOLE, d_state=WHOLE.d_state + 1), ["text"]), swapped):
        with pytest.raises(ValueError, match="the members of an ensemble have the layout"):
            Ensemble(WHOLE, [MODELS[0], random_model(other)])


def test_a_modality_that_nobody_hears_is_named() -> None:
    with pytest.raises(ValueError, match="no member of the ensemble hears audio"):
        Ensemble(WHOLE, [random_model(of_member(WHOLE, names)) for names in (["text"], ["text", "video"])])
    with pytest.raises(ValueError, match="hears text, audio, video"):
        Ensemble(WHOLE, [])


def test_what_has_no_answer_for_another_reason_is_not_left_out() -> None:
    broken = random_model(WHOLE)
    broken.head.out_proj.bias.fill_(torch.nan)
    members = [broken, *ENSEMBLES["some"].each()[1:]]
    answer = run_clips(make_executable(Ensemble(WHOLE, members), "cpu"), a_clip(), read_all=True)
    assert answer.isnan().all()


def test_a_checkpoint_of_members_is_loaded_as_them(tmp_path: Path) -> None:
    folder = build_checkpoint(tmp_path / "three", members=3)
    checkpoint = load_checkpoint(folder)
    assert checkpoint.config.members == 3
    assert isinstance(checkpoint.model, Ensemble)
    for loaded, model in zip(checkpoint.model.each(), MODELS, strict=True):
        assert all(torch.equal(tensor, loaded.state_dict()[name]) for name, tensor in model.state_dict().items())


def test_members_that_hear_some_modalities_are_loaded_as_them(tmp_path: Path) -> None:
    folder = build_checkpoint(tmp_path / "some", hears=HEARS["some"])
    checkpoint = load_checkpoint(folder)
    assert isinstance(checkpoint.model, Ensemble)
    assert checkpoint.model.hears() == HEARS["some"]
    assert checkpoint.config.to_json()["hears"] == HEARS["some"]
    for loaded, model in zip(checkpoint.model.each(), ENSEMBLES["some"].each(), strict=True):
        assert all(torch.equal(tensor, loaded.state_dict()[name]) for name, tensor in model.state_dict().items())


def test_a_member_that_is_missing_from_the_file_is_named(tmp_path: Path) -> None:
    folder = build_checkpoint(tmp_path / "three", members=3)

    def spoil(tensors: dict[str, Tensor]) -> None:
        del tensors["members.2.norm_f.bias"]

    edit(folder, spoil)
    assert "missing members.2.norm_f.bias [3, 12]" in refused(load_checkpoint, folder)
