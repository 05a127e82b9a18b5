"""The state as a value: what goes on from it equals what was never cut, and nothing else is read as one."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.numpy import load, save

from service.engine import snapshots
from service.engine.clip_program import ClipProgram, Result
from service.engine.request import NotFinite, Request
from service.engine.runner import ClipRunner
from service.engine.scheduler import Scheduler
from service.engine.snapshots import Snapshot, SnapshotFormat, fingerprint_of, made_by
from service.errors import InvalidInput, SessionConflict
from service.features.types import Clip
from tests.checkpoints import WIDTHS, build_checkpoint, model_config, random_model
from tests.engine.clips import answer_alone, part, random_clip

MODEL = random_model(model_config())
FORMAT = SnapshotFormat("tiny", "f" * 64, MODEL.state_tensors())
RUNNER = ClipRunner(MODEL, WIDTHS, 3, FORMAT.fingerprint)


def run(*programs: ClipProgram, chunk_steps: int = 5) -> list[Result]:
    """All programs side by side, on slots that are full of NaN."""
    for tensor in RUNNER.state.values():
        tensor.fill_(torch.nan if tensor.dtype.is_floating_point else 1)
    RUNNER._seen[:] = [1000] * 4  # nor is what was counted there
    scheduler = Scheduler(3, chunk_steps, 11, lambda request, outcome: None)
    requests = [Request("test", program) for program in programs]
    for request in requests:
        scheduler.add(request)
    while (batch := scheduler.schedule()) is not None:
        scheduler.deliver(batch, RUNNER.run(batch))
    return [request.future.result(0) for request in requests]


def a_snapshot(steps: int = 9, seed: int = 0) -> Snapshot:
    snapshot = run(ClipProgram(random_clip(np.random.default_rng(seed), steps), capture=True))[0].snapshot
    assert snapshot is not None
    return snapshot


def bits(snapshot: Snapshot) -> dict[str, bytes]:
    return {name: row.numpy().tobytes() for name, row in snapshot.rows.items()}


@given(
    seed=st.integers(0, 2**32 - 1),
    cuts=st.lists(st.integers(1, 9), min_size=1, max_size=6),
    chunk_steps=st.integers(1, 7),
    sent=st.booleans(),
)
def test_any_cuts_give_the_outputs_of_the_whole(seed: int, cuts: list[int], chunk_steps: int, sent: bool) -> None:
    """Pieces of one step are shorter than the convolution's window; `sent`: the state goes through bytes each time."""
    clip = random_clip(np.random.default_rng(seed), sum(cuts))
    snapshot, start, outputs = None, 0, []
    for steps in cuts:
        program = ClipProgram(part(clip, start, start + steps), True, restore=snapshot, capture=True)
        (result,) = run(program, chunk_steps=chunk_steps)
        outputs.append(result.outputs)
        assert result.snapshot is not None
        snapshot = FORMAT.load(FORMAT.dump(result.snapshot)) if sent else result.snapshot
        start += steps
        assert snapshot.steps == start
    np.testing.assert_allclose(np.concatenate(outputs), answer_alone(MODEL, clip), rtol=1e-5, atol=1e-5)


def test_a_state_is_copied_at_the_end_only(monkeypatch: pytest.MonkeyPatch) -> None:
    copied = []
    capture = RUNNER._capture
    monkeypatch.setattr(RUNNER, "_capture", lambda slot, rows: copied.append(slot) or capture(slot, rows))
    clip = random_clip(np.random.default_rng(0), 12)
    (result,) = run(ClipProgram(clip, capture=True))
    assert result.snapshot is not None
    assert (result.snapshot.steps, len(copied)) == (12, 1)
    run(ClipProgram(clip))
    assert len(copied) == 1


def test_many_go_on_from_one_state_and_it_stays_as_it_was() -> None:
    rng = np.random.default_rng(3)
    shared = a_snapshot(12)
    before = bits(shared)
    ends = [random_clip(rng, steps) for steps in (1, 2, 20)]
    together = run(*(ClipProgram(end, restore=shared, capture=True) for end in ends))
    for end, result in zip(ends, together, strict=True):
        (alone,) = run(ClipProgram(end, restore=shared))
        np.testing.assert_allclose(result.outputs, alone.outputs, rtol=1e-5, atol=1e-5)
    assert bits(shared) == before


def test_a_state_is_not_touched_by_who_has_the_slot_next() -> None:
    snapshot = a_snapshot()
    before = bits(snapshot)
    run(*(ClipProgram(random_clip(np.random.default_rng(i), 7)) for i in range(6)))
    assert bits(snapshot) == before


def test_a_state_that_is_not_finite_fails_its_request() -> None:
    huge = Clip(
        {"text": np.full((3, 6), 3e38, np.float32)}, np.array([[True] * 3, [False] * 3, [False] * 3]), np.arange(3.0)
    )
    with pytest.raises(NotFinite):
        run(ClipProgram(huge, capture=True))


def test_a_state_is_of_one_size_however_long_its_sequence() -> None:
    short, long = a_snapshot(2), a_snapshot(400)
    assert short.bytes == long.bytes
    assert abs(len(FORMAT.dump(short)) - len(FORMAT.dump(long))) <= 8  # the number of steps has more digits


def test_only_rows_of_a_prefix_are_renewed() -> None:
    snapshot = a_snapshot()
    renewed = FORMAT.renewed(snapshot, "pool_")
    initial = bits(FORMAT.initial())
    for name, data in bits(renewed).items():
        assert data == (initial if name.startswith("pool_") else bits(snapshot))[name]
    assert renewed.steps == snapshot.steps


def test_bytes_hold_the_same_bits_and_what_lies_beside() -> None:
    aside = {"pcm": np.arange(5, dtype=np.int16), "t": np.array([[0.5, 2.0]]), "ids": np.array([3, 4])}
    snapshot = a_snapshot().beside(aside, {"segments": [1, "two"]})
    back = FORMAT.load(FORMAT.dump(snapshot))
    assert bits(back) == bits(snapshot)
    assert back.steps == 9
    assert back.notes == {"segments": [1, "two"]}
    assert {name: (array.dtype, array.tolist()) for name, array in back.aside.items()} == {
        name: (array.dtype, array.tolist()) for name, array in aside.items()
    }
    assert FORMAT.dump(back) == FORMAT.dump(snapshot)
    assert set(load(FORMAT.dump(snapshot))) == {f"state.{name}" for name in snapshot.rows} | {
        f"aside.{name}" for name in aside
    }
    assert made_by(FORMAT.dump(snapshot)) == ("tiny", "f" * 64)
    assert back.bytes == snapshot.bytes == sum(map(len, bits(snapshot).values())) + 10 + 16 + 16


def test_a_state_names_the_instruction_sets_that_it_came_through() -> None:
    model = random_model(model_config())
    model.isa = "avx9"  # type: ignore[assignment]
    runner, clip = ClipRunner(model, WIDTHS, 3, FORMAT.fingerprint), random_clip(np.random.default_rng(0), 12)

    def ran(restore: Snapshot | None) -> Snapshot:
        request = Request("test", ClipProgram(clip, restore=restore, capture=True))
        scheduler = Scheduler(3, 5, 11, lambda request, outcome: None)
        scheduler.add(request)
        while (batch := scheduler.schedule()) is not None:
            kept = runner.take_out([0])
            runner._through[0] = frozenset({"of", "another"})
            runner.put_back([0], kept)
            scheduler.deliver(batch, runner.run(batch))
        snapshot = request.future.result(0).snapshot
        assert snapshot is not None
        return FORMAT.load(FORMAT.dump(snapshot))

    assert FORMAT.initial().instructions == a_snapshot().instructions == frozenset()
    assert ran(None).instructions == {"avx9"}
    assert ran(replace(a_snapshot(), instructions=frozenset({"neon", "amx"}))).instructions == {"avx9", "neon", "amx"}
    assert ran(None).instructions == {"avx9"}  # on a slot that others had


def test_another_model_recipe_weights_or_backend_is_a_conflict(tmp_path: Path) -> None:
    folder, other = build_checkpoint(tmp_path / "a"), build_checkpoint(tmp_path / "b", seed=1)
    hashes = {
        fingerprint_of(folder, {"model": 1}, "reference"),
        fingerprint_of(folder, {"model": 2}, "reference"),
        fingerprint_of(folder, {"model": 1}, "cpu"),
        fingerprint_of(other, {"model": 1}, "reference"),
    }
    assert len(hashes) == 4
    data = FORMAT.dump(a_snapshot())
    with pytest.raises(SessionConflict, match="'other'"):
        SnapshotFormat("other", "0" * 64, FORMAT.tensors).load(data)


@given(st.data())
def test_no_damage_goes_unnoticed(data: st.DataObject) -> None:
    whole = FORMAT.dump(DAMAGED)
    damaged = bytearray(whole)
    if data.draw(st.booleans()):
        damaged = damaged[: data.draw(st.integers(0, len(whole) - 1))]
    else:
        damaged[data.draw(st.integers(0, len(whole) - 1))] ^= data.draw(st.integers(1, 255))
    with pytest.raises((InvalidInput, SessionConflict)):
        FORMAT.load(bytes(damaged))


DAMAGED = a_snapshot().beside({"ids": np.array([3, 4])})


def forged(tensors: dict[str, Any] | None = None, **metadata: str) -> bytes:
    """A snapshot with other tensors and metadata, and a checksum that is right."""
    honest = FORMAT.dump(DAMAGED)
    header = json.loads(honest[8 : 8 + int.from_bytes(honest[:8], "little")])
    said = header["__metadata__"] | metadata
    arrays = load(honest) | (tensors or {})
    arrays = {name: array for name, array in arrays.items() if array is not None}
    said["checksum"] = snapshots._checksum(said, {name: array.tobytes() for name, array in arrays.items()})
    return save(arrays, said)


SSM = DAMAGED.rows["ssm"].numpy()
COUNT = DAMAGED.rows["pool_count"].numpy()
NEITHER = np.full(DAMAGED.rows["started"].shape, 2, np.uint8).view(np.bool_)


@pytest.mark.parametrize(
    ("data", "says"),
    [
        (b"", "header"),
        (b"\xff" * 8 + b"{}", "header claims"),
        ((10**6).to_bytes(8, "little") + b" " * 10**6, "header claims"),
        ((2).to_bytes(8, "little") + b"[]", "not safetensors"),
        ((2).to_bytes(8, "little") + b"{}", "metadata"),
        (save({"x": SSM}), "metadata"),
        (forged(format="serpentine-snapshot-9"), "format"),
        (forged(steps="-1"), "steps"),
        (forged(instructions="x" * 201), "instructions"),
        (forged(steps="9" * 19), "steps"),
        (forged(steps="²"), "steps"),
        (forged(notes="[1]"), "notes"),
        (forged(notes="[" * 30_000), "notes"),
        (forged({"state.ssm": None}), "its state has"),
        (forged({"state.more": SSM}), "its state has"),
        (forged({"more": SSM.astype(np.float16)}), "beside the state"),
        (forged({"state.ssm": SSM[:1]}), "expected F32"),
        (forged({"state.ssm": SSM.astype(np.float64)}), "expected F32"),
        (forged({"state.ssm": np.full_like(SSM, np.nan)}), "no run leaves"),
        (forged({"state.ssm": np.full_like(SSM, -np.inf)}), "no run leaves"),
        (forged({"state.pool_max": np.full_like(DAMAGED.rows["pool_max"].numpy(), np.inf)}), "no run leaves"),
        (forged({"state.pool_count": COUNT - 2**62}), "no run leaves"),
        (
            forged({"state.started": np.full(DAMAGED.rows["started"].shape, 2, np.uint8).view(np.bool_)}),
            "neither 0 nor 1",
        ),
        (forged({"aside.t": np.array([np.nan])}), "not finite"),
        (forged({"aside.big": np.zeros(snapshots.MAX_ASIDE_BYTES // 8 + 1)}), "at most"),
    ],
)
def test_a_hostile_snapshot_is_refused_by_name(data: bytes, says: str) -> None:
    with pytest.raises(InvalidInput, match=says) as error:
        FORMAT.load(data)
    assert error.value.errors[0].loc == ("snapshot",)
