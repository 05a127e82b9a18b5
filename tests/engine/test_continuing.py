"""A conversation that is cut into requests is the conversation: each prompt goes on from where an answer ended."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from service.engine.generation import Generation
from service.engine.generation_program import GenerationProgram
from service.engine.params import SamplingParams
from service.engine.reading_program import Read, ReadingProgram
from service.engine.request import Piece, Request, Work
from service.engine.runner import TokenRunner
from service.engine.scheduler import Scheduler
from service.engine.snapshots import Snapshot, SnapshotFormat
from tests.generators import byte_of, params, tiny_model, tiny_vocabulary

VOCABULARY = tiny_vocabulary()
MODEL = tiny_model(VOCABULARY)
FORMAT = SnapshotFormat("tiny", "f" * 64, MODEL.state_tensors())
RUNNER = TokenRunner(MODEL, 6, FORMAT.fingerprint)
BOS = VOCABULARY.bos or 0
PARAMS = params(max_tokens=12, temperature=1.0, seed=3)


def run(program: GenerationProgram | ReadingProgram, chunk_steps: int = 5) -> Generation | Read:
    """A program alone, on slots that are full of NaN."""
    for tensor in RUNNER.state.values():
        tensor.fill_(torch.nan)
    scheduler = Scheduler(6, chunk_steps, 20, lambda request, outcome: None)
    request = Request("test", program)
    scheduler.add(request)
    while (batch := scheduler.schedule()) is not None:
        scheduler.deliver(batch, RUNNER.run(batch))
    return request.future.result(0)


def generate(
    prompt: Sequence[int], asked: SamplingParams = PARAMS, state: Snapshot | None = None, *, capture: bool = True
) -> Generation:
    program = GenerationProgram(prompt, asked, VOCABULARY, bytes_of=byte_of, restore=state, capture=capture)
    generation = run(program)
    assert isinstance(generation, Generation)
    return generation


def words(seed: int, length: int) -> list[int]:
    return torch.randint(97, 123, (length,), generator=torch.Generator().manual_seed(seed)).tolist()


def close(state: Snapshot, other: Snapshot) -> bool:
    return state.steps == other.steps and all(
        torch.allclose(row, other.rows[name], rtol=1e-4, atol=1e-5) for name, row in state.rows.items()
    )


def read(ids: Sequence[int], state: Snapshot | None = None) -> Snapshot:
    """The state after ids."""
    result = run(ReadingProgram(ids, state))
    assert isinstance(result, Read)
    return result.snapshot


@settings(max_examples=12)  # each runs several generations, step by step
@given(
    lengths=st.lists(st.integers(1, 8), min_size=2, max_size=4),
    mode=st.sampled_from(["interleaved", "text-only", "image-only"]),
    guidance=st.sampled_from([1.0, 2.0]),
    sent=st.booleans(),
)
def test_a_conversation_in_pieces_is_the_conversation(
    lengths: list[int], mode: str, guidance: float, sent: bool
) -> None:
    asked = params(max_tokens=12, temperature=1.0, seed=3, mode=mode, guidance_scale=guidance)
    said: list[int] = []
    state = None
    for turn, length in enumerate(lengths):
        prompt = words(turn, length) if turn else [BOS, *words(turn, length)]
        generation = generate(prompt, asked, state)
        said += prompt
        whole = generate(said, asked, capture=False)
        assert generation.choices[0].tokens == whole.choices[0].tokens
        assert whole.snapshot is None
        said += generation.choices[0].tokens
        assert generation.snapshot is not None
        assert generation.snapshot.steps == len(said)
        state = FORMAT.load(FORMAT.dump(generation.snapshot)) if sent else generation.snapshot
        assert close(state, read(said))


def test_a_state_without_an_answer_goes_on_alike() -> None:
    prompt = [BOS, *words(0, 14)]
    state = read(prompt[4:9], read(prompt[:4]))
    assert close(state, read(prompt[:9]))
    assert generate(prompt[9:], state=state).choices == generate(prompt).choices


def test_one_state_goes_on_in_several_answers_and_stays_as_it_was() -> None:
    state = read([BOS, *words(0, 9)])
    before = {name: row.clone() for name, row in state.rows.items()}
    asked = params(max_tokens=6, temperature=1.0, n=3, seed=1)
    for prompt in ([BOS, *words(0, 9), 5], [BOS, *words(0, 9), 5, 6]):
        assert (
            generate(prompt[10:], asked, state, capture=False).choices == generate(prompt, asked, capture=False).choices
        )
    assert all(torch.equal(row, before[name]) for name, row in state.rows.items())


class Forked(ReadingProgram):
    """Reads the ids on a second row, which goes on from the first."""

    rows = 2

    def pieces(self) -> Iterator[Piece]:
        for piece in super().pieces():
            yield replace(piece, capture=False)
            yield replace(piece, row=1, restore=None, fork_of=0)

    def advance(self, work: Work, output: None) -> None:
        if work.capture:
            super().advance(work, output)


def test_a_row_that_goes_on_from_another_came_through_what_that_did(monkeypatch: pytest.MonkeyPatch) -> None:
    """As many steps, and the same processors: `deterministic` of what goes on from it hangs on them."""
    monkeypatch.setattr(RUNNER, "_instructions", frozenset({"here"}))
    monkeypatch.setattr(RUNNER, "_through", [frozenset({"here"})] * 7)
    state = replace(read([BOS, *words(0, 4)]), instructions=frozenset({"elsewhere"}))
    left = run(Forked(words(1, 3), state))
    assert isinstance(left, Read)
    assert (left.snapshot.steps, left.snapshot.instructions) == (8, {"here", "elsewhere"})
    assert close(left.snapshot, read([BOS, *words(0, 4), *words(1, 3)]))
    assert not RUNNER.same_bits_from(left.snapshot)


def answer_bytes(prompt: list[int], asked: SamplingParams) -> tuple[int, ...]:
    return generate(prompt, asked).choices[0].tokens


@pytest.mark.parametrize("width", [1, 2, 3])
@pytest.mark.parametrize("place", [0, 1, 4])
def test_an_answer_that_ended_at_a_stop_string_goes_on_from_before_it(width: int, place: int) -> None:
    asked = params(max_tokens=10, mode="text-only", temperature=1.0, seed=8)
    prompt = [BOS, *words(0, 5)]
    tokens = answer_bytes(prompt, asked)
    stop = bytes(tokens[place : place + width])
    assert len(stop) == width
    place = bytes(tokens).find(stop)
    stopped = generate(prompt, params(max_tokens=10, mode="text-only", temperature=1.0, seed=8, stop=(stop, b"never")))
    assert stopped.choices[0].tokens == tokens[: place + width]
    assert stopped.choices[0].finish_reason == "stop"
    assert stopped.snapshot is not None
    assert stopped.unread == b""
    assert stopped.snapshot.steps == len(prompt) + place
    assert close(stopped.snapshot, read([*prompt, *tokens[:place]]))


def test_what_a_token_has_before_the_stop_string_is_left_to_be_read() -> None:
    """Tokens here are pairs of letters; the stop string begins in the middle of one."""
    asked = {"max_tokens": 8, "mode": "text-only", "temperature": 1.0, "seed": 8}
    prompt = [BOS, *words(0, 5)]

    def pair(token: int) -> bytes:
        return bytes([97 + token % 16, 97 + token // 16]) if token < 256 else b""

    def generated(stop: tuple[bytes, ...]) -> Generation:
        program = GenerationProgram(prompt, params(**asked, stop=stop), VOCABULARY, bytes_of=pair, capture=True)
        generation = run(program)
        assert isinstance(generation, Generation)
        return generation

    tokens = generated(()).choices[0].tokens
    text = b"".join(map(pair, tokens))
    stop = text[5:8]
    assert text.find(stop) == 5
    stopped = generated((stop,))
    assert stopped.unread == text[4:5]
    assert stopped.snapshot is not None
    assert stopped.snapshot.steps == len(prompt) + 2
    assert close(stopped.snapshot, read([*prompt, *tokens[:2]]))


def test_states_that_no_stop_string_leads_back_to_are_not_held() -> None:
    program = GenerationProgram(
        [BOS, 5],
        params(max_tokens=30, mode="text-only", stop=(b"\xfe\xfe",)),
        VOCABULARY,
        bytes_of=byte_of,
        capture=True,
    )
    most = 0
    advance = program.advance

    def watched(*args: object) -> None:
        nonlocal most
        advance(*args)  # type: ignore[arg-type]
        most = max(most, len(program._recent))

    program.advance = watched  # type: ignore[method-assign]
    run(program)
    assert most <= 2
