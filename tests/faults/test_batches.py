"""A batch that raises, a model that gives no number, an engine that dies: who is told what, and who notices nothing."""

from __future__ import annotations

import json
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import httpx
import numpy as np
import pytest

from tests.api.bodies import clip
from tests.api.streaming import streaming
from tests.engine.clips import MARK, Gate
from tests.faults.service import PROMPT, Service, same, value_of

SECRET = "a path of ours"


class Spoiling:
    """Holds a model's first batch, so that those that come meanwhile share the next, and spoils that one."""

    def __init__(self, service: Service, model: str, spoil: Any) -> None:
        self.gate, self.spoil, self.batches = Gate(), spoil, 0
        service.wrap(model, before=self.before, after=self.after)

    def before(self, chunk: Any) -> None:
        self.batches += 1
        if self.batches == 1:
            self.gate()
        elif isinstance(self.spoil, BaseException) and self.batches == 2:
            raise self.spoil

    def after(self, chunk: Any, outputs: Any) -> Any:
        return self.spoil(chunk, outputs) if callable(self.spoil) else outputs


def submit_together(
    service: Service, spoiling: Spoiling, calls: list[Any], pool: ThreadPoolExecutor
) -> list[Future[httpx.Response]]:
    """Calls that share batches from their first on, behind one that is held until all of them are in."""
    before = service.submitted
    futures = [pool.submit(calls[0])]
    spoiling.gate.wait_reached()
    futures += [pool.submit(call) for call in calls[1:]]
    service.until(lambda: service.submitted == before + len(calls), "not all were submitted")
    spoiling.gate.open()
    return futures


@pytest.mark.parametrize("model", ["tiny", "trio"])
def test_an_exception_answers_its_batch_and_the_next_request_works(service: Service, model: str) -> None:
    call = service.predict if model == "tiny" else service.generate
    expected = value_of(call())
    spoiling = Spoiling(service, model, RuntimeError(SECRET))
    with ThreadPoolExecutor(3) as pool:
        futures = submit_together(service, spoiling, [call] * 3, pool)
        answers = [future.result() for future in futures]
    assert [answer.status_code for answer in answers] == [500] * 3  # the first one's second batch is this one too
    assert {answer.json()["code"] for answer in answers} == {"internal"}
    assert not any(SECRET in answer.text for answer in answers)
    assert service.get("/livez").status_code == 200
    service.until_idle()
    assert same(service, value_of(call()), expected)


@pytest.mark.parametrize("value", [np.nan, np.inf], ids=["nan", "inf"])
def test_a_clip_without_a_number_fails_alone(service: Service, value: float) -> None:
    def spoil(chunk: Any, outputs: Any) -> Any:
        outputs = outputs.clone()
        outputs[chunk.inputs["text"][chunk.reads, 0] == MARK, 0] = value
        return outputs

    calls = [lambda seed=seed: service.predict(seed, marked=seed == 1) for seed in range(3)]
    expected = [value_of(service.predict(seed)) for seed in range(3)]
    spoiling = Spoiling(service, "tiny", spoil)
    with ThreadPoolExecutor(3) as pool:
        answers = [future.result() for future in submit_together(service, spoiling, calls, pool)]
    assert (answers[1].status_code, answers[1].json()["code"]) == (500, "internal")
    for index in (0, 2):
        assert same(service, value_of(answers[index]), expected[index])
    service.until_idle()  # the engine counts it right behind the answer
    assert service.sample("nonfinite_outputs_total", phase="inference") == 1


@pytest.mark.parametrize("value", [np.nan, np.inf], ids=["nan", "inf"])
def test_a_generation_without_a_number_fails_alone(service: Service, value: float) -> None:
    """Its third token has logits that are none; it had told of two."""
    spoiled: list[int] = []

    def spoil(chunk: Any, logits: Any) -> Any:
        logits = logits.clone()
        if len(logits) == 3 and not spoiled:
            spoiled.append(int(chunk.slots[1]))
            logits[1] = value
        return logits

    calls = [lambda seed=seed: service.generate(seed=seed, mode="text-only", max_tokens=20) for seed in range(3)]
    expected = [value_of(call()) for call in calls]
    spoiling = Spoiling(service, "trio", spoil)
    with ThreadPoolExecutor(3) as pool:
        answers = [future.result() for future in submit_together(service, spoiling, calls, pool)]
    failed = [index for index, answer in enumerate(answers) if answer.status_code != 200]
    assert [answers[index].json()["code"] for index in failed] == ["internal"]
    for index, answer in enumerate(answers):
        if index not in failed:
            assert same(service, value_of(answer), expected[index])
    assert service.sample("nonfinite_outputs_total", phase="inference") == 1
    service.until_idle()


def test_a_session_is_as_it_was_after_a_state_without_a_number(service: Service) -> None:
    session = httpx.post(f"{service.url}/sessions", json={"model": "tiny"}).json()["id"]
    path = f"{service.url}/sessions/{session}"
    body = {"features": {"audio": clip(1, audio=4)["audio"].tolist()}}
    assert httpx.post(f"{path}/steps", json=body, timeout=60).status_code == 200
    before = httpx.get(f"{path}/snapshot").content
    state = service.runtime.models["tiny"].lane.runner.state

    def spoil(chunk: Any, outputs: Any) -> Any:
        state["ssm"][chunk.slots] = np.nan
        return outputs

    service.wrap("tiny", after=spoil)
    assert httpx.post(f"{path}/steps", json=body, timeout=60).status_code == 500
    assert httpx.get(f"{path}/snapshot").content == before
    service.runtime.models["tiny"].lane.runner.model.after = None
    service.until(lambda: httpx.post(f"{path}/steps", json=body, timeout=60).status_code == 200, "it stayed leased")


class Death(BaseException):
    """What no handler of exceptions takes."""


def test_when_the_engine_dies_everybody_is_told_at_once(service: Service) -> None:
    """In the middle of a generation's events, with clips in the queue and a stream that is open."""
    gate, batches = Gate(), iter(range(10**6))

    def die(chunk: Any) -> None:
        if next(batches) == 6:
            gate()
            raise Death

    with streaming(service.url) as stream, ThreadPoolExecutor(3) as pool:
        stream.start(lag_ms=0)
        before = service.submitted
        service.wrap("trio", before=die)
        events = pool.submit(read_events, service)
        gate.wait_reached()
        waiting = [pool.submit(service.predict, seed) for seed in range(2)]
        service.until(lambda: service.submitted == before + 3, "not all were submitted")
        gate.open()
        for future in waiting:
            assert (future.result().status_code, future.result().json()["code"]) == (503, "engine_down")
        assert events.result()["error"]["code"] == "engine_down"
        assert service.get("/livez").status_code == 503
        assert service.get("/readyz").status_code == 503
        for answer in (service.predict(), service.generate()):
            assert (answer.status_code, answer.json()["code"]) == (503, "engine_down")
        stream.frame(t=0.0, audio=clip(1, audio=3)["audio"])
        assert stream.closed() == 1013
        assert stream.errors[-1]["code"] == "engine_down"
    service.until_idle()


def read_events(service: Service) -> Any:
    """The `response` of the last event of a long generation."""
    body = {"prompt": PROMPT, "max_tokens": 40, "mode": "image-only", "n": 2, "seed": 1, "stream": True}
    last: Any = None
    with httpx.stream("POST", f"{service.url}/generate", json=body, timeout=60) as response:
        for line in response.iter_lines():
            if line.startswith("data: "):
                last = json.loads(line[6:])
    return last["response"]
