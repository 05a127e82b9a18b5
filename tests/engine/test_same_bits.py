"""The contract of docs/determinism.md: alone, in any batch, under any cuts, out of a snapshot: the same bits."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from service.engine.reading_program import ReadingProgram
from service.engine.request import Request
from service.engine.snapshots import Snapshot, SnapshotFormat
from tests.engine.bench import BOS, CLIPS, TOKEN, TOKENS, Bench, answers_of, bitwise_backends, outputs_of
from tests.engine.clips import part, random_clip
from tests.generators import params

pytestmark = pytest.mark.parametrize("backend", bitwise_backends())

CLIP_FORMAT = SnapshotFormat("clips", "", CLIPS.state_tensors())
TOKEN_FORMAT = SnapshotFormat("tokens", "", TOKENS.state_tensors())
ALONE = {"chunk_steps": 1000, "step_budget": 1000, "slots": 8}  # one piece, the slots' order left to the engine

layouts = st.fixed_dictionaries(
    {"slots": st.integers(4, 8), "chunk_steps": st.integers(1, 9), "step_budget": st.integers(16, 40)}
)
asked = st.builds(
    params,
    mode=st.sampled_from(["interleaved", "text-only", "image-only", "speech-only"]),
    max_tokens=st.integers(7, 16),
    temperature=st.just(1.0),
    top_p=st.sampled_from([1.0, 0.8]),
    guidance_scale=st.sampled_from([1.0, 2.5]),
    repetition_penalty=st.sampled_from([1.0, 1.4]),
    n=st.integers(1, 2),
    logprobs=st.just(3),
    seed=st.integers(0, 9),
)
prompts = st.lists(st.integers(1, 255), min_size=1, max_size=24).map(lambda ids: [BOS, *ids])


def sent(states: SnapshotFormat, snapshot: Snapshot | None) -> Snapshot:
    """As another process would have it."""
    assert snapshot is not None
    return states.load(states.dump(snapshot))


@settings(max_examples=25)
@given(seed=st.integers(0, 2**32 - 1), lengths=st.lists(st.integers(1, 40), min_size=1, max_size=9), layout=layouts)
def test_clips_in_any_batch_and_any_chunks(backend: str, seed: int, lengths: list[int], layout: dict[str, Any]) -> None:
    rng = np.random.default_rng(seed)
    clips = [random_clip(rng, steps) for steps in lengths]
    alone, together = Bench(backend, **ALONE), Bench(backend, **layout)
    expected = [outputs_of(alone.clip(clip).result(60)) for clip in clips]
    assert [outputs_of(future.result(60)) for future in together.clips(clips)] == expected
    alone.close()
    together.close()


@settings(max_examples=25)
@given(seed=st.integers(0, 2**32 - 1), cuts=st.lists(st.integers(1, 12), min_size=1, max_size=8), layout=layouts)
def test_a_clip_in_pieces_each_from_a_snapshot_in_company(
    backend: str, seed: int, cuts: list[int], layout: dict[str, Any]
) -> None:
    """What a stream and a session are: a piece, its state as bytes, the next piece on whatever slot."""
    rng = np.random.default_rng(seed)
    clip, others = random_clip(rng, sum(cuts)), [random_clip(rng, int(n)) for n in rng.integers(1, 30, 3)]
    alone, bench = Bench(backend, **ALONE), Bench(backend, **layout)
    whole = alone.clip(clip, capture=True).result(60)
    company = [future for other in others for future in bench.clips([other])]
    snapshot, start, outputs = None, 0, b""
    for steps in cuts:
        piece = bench.clip(part(clip, start, start + steps), restore=snapshot, capture=True).result(60)
        snapshot, start = sent(CLIP_FORMAT, piece.snapshot), start + steps
        outputs += outputs_of(piece)
    assert outputs == outputs_of(whole)
    assert whole.snapshot is not None
    assert snapshot is not None
    assert CLIP_FORMAT.dump(snapshot) == CLIP_FORMAT.dump(whole.snapshot)
    for future in company:
        future.result(60)
    alone.close()
    bench.close()


@settings(max_examples=15)  # each is a hundred steps
@given(calls=st.lists(st.tuples(prompts, asked), min_size=1, max_size=4), layout=layouts, cached=st.booleans())
def test_generations_in_any_batch_any_chunks_and_with_known_beginnings(
    backend: str, calls: list[tuple[list[int], Any]], layout: dict[str, Any], cached: bool
) -> None:
    """Draws at temperature 1 and their log probabilities as floats; `cached`: asked twice, the second time from it."""
    alone, bench = Bench(backend, **ALONE), Bench(backend, **layout, prefix_bytes=2**20 if cached else 0)
    expected = [answers_of(alone.generation(*call).result(60)) for call in calls]
    for _ in range(1 + cached):
        futures = bench.generations(calls, cached=cached)
        answers = [future.result(60) for future in futures]
        assert [answers_of(answer) for answer in answers] == expected
    assert not cached or all(answer.cached_tokens for answer in answers)
    alone.close()
    bench.close()


@settings(max_examples=15)
@given(prompt=prompts, call=asked, cut=st.integers(1, 24), layout=layouts)
def test_a_generation_from_a_snapshot_is_that_of_the_whole_prompt(
    backend: str, prompt: list[int], call: Any, cut: int, layout: dict[str, Any]
) -> None:
    cut = min(cut, len(prompt) - 1)
    alone, bench = Bench(backend, **ALONE), Bench(backend, **layout)
    (reading,) = bench.engine.submit(TOKEN, [Request("reading", ReadingProgram(prompt[:cut]))])
    company = bench.generations([([BOS, 9, 8, 7], params(max_tokens=12, temperature=1.0))])
    state = sent(TOKEN_FORMAT, reading.result(60).snapshot)
    asked_plainly = params(
        **{
            name: getattr(call, name)
            for name in (
                "mode",
                "max_tokens",
                "temperature",
                "top_p",
                "top_k",
                "guidance_scale",
                "n",
                "logprobs",
                "seed",
            )
        }
    )  # the penalty looks at this request's own prompt
    whole = alone.generation(prompt, asked_plainly).result(60)
    rest = bench.generation(prompt[cut:], asked_plainly, restore=state).result(60)
    assert answers_of(rest) == answers_of(whole)
    company[0].result(60)
    alone.close()
    bench.close()


def test_where_a_sequence_lies_in_the_pool_changes_nothing(backend: str) -> None:
    """Every slot, and the rows that others left in it, give one answer."""
    bench = Bench(backend, slots=8)
    clip = random_clip(np.random.default_rng(0), 17)
    answers = {outputs_of(future.result(60)) for future in bench.clips([clip] * 24)}
    assert len(answers) == 1
    bench.close()
