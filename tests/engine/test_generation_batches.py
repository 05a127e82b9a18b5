"""What of a generation is in which batch: twins of guidance, a prompt's chunks beside the decoding of others."""

from __future__ import annotations

from tests.engine.clips import Gate
from tests.engine.generations import MODEL, HookedTokens, Listening, Start, endless, prompt_of
from tests.generators import params


def test_guidance_takes_a_second_slot_and_scale_1_does_not(start: Start) -> None:
    for asked, used in (({"guidance_scale": 2.0}, 4), ({}, 2), ({"guidance_scale": 2.0, "mode": "text-only"}, 2)):
        gate = Gate()
        bench = start(HookedTokens(MODEL, before=gate))
        future = bench.submit(prompt_of(3), params(n=2, **asked))
        gate.wait_reached()
        assert bench.used() == used
        gate.open()
        future.result(60)
        bench.assert_idle()


def test_a_choice_and_its_twin_are_always_in_one_batch(start: Start) -> None:
    bench = start(slots=8, step_budget=17)
    futures = [
        bench.submit(prompt_of(20, seed), params(mode="image-only", guidance_scale=2.0, n=2, max_tokens=30))
        for seed in range(5)
    ]
    for future in futures:
        future.result(60)
    twins = 0
    for batch in bench.batches:
        rows = {(work.request, work.row) for work in batch.works}
        for work in batch.works:
            if work.row >= 2:
                twins += 1
                assert (work.request, work.row - 2) in rows
        assert batch.steps <= 17
    assert twins > 5 * 2 * 10


def test_the_prompt_runs_once_for_all_choices_and_in_chunks_beside_the_decoding_of_others(start: Start) -> None:
    bench = start(HookedTokens(MODEL, after=endless), slots=4, chunk_steps=5, step_budget=12)
    listening = Listening(until=3)
    early = bench.submit(prompt_of(2), params(mode="text-only", max_tokens=10_000), listener=listening)
    assert listening.reached.wait(60)
    late = bench.submit(prompt_of(42), params(n=3, max_tokens=4))
    late.result(60)
    early.cancel()
    prefill = [work for batch in bench.batches for work in batch.works if not work.decode]
    assert sum(work.steps for work in prefill) == 1 + 41
    assert all(work.steps <= 5 for work in prefill)
    for batch in bench.batches:
        if any(not work.decode and work.stop > 1 for work in batch.works):
            assert any(work.decode for work in batch.works)  # the early one had its token in every step
    assert [len(batch.forks) for batch in bench.batches if batch.forks] == [2]


def test_the_phase_of_a_batch_is_in_the_metrics(start: Start) -> None:
    bench = start()
    bench.submit(prompt_of(8), params(max_tokens=6, mode="text-only", temperature=1.0)).result(60)
    bench.engine.stop()
    counts = [bench.value("batch_size_count", model="tiny", phase=phase) for phase in ("prefill", "decode", "step")]
    decoded = [batch for batch in bench.batches if batch.phase == "decode"]
    assert counts == [2, len(decoded), None]
