"""The job of steps that go on from a state: what streams and sessions are made of. Their features are there already."""

from __future__ import annotations

from concurrent.futures import Future

from service.engine.clip_program import ClipProgram, Result
from service.job import Job
from service.served import ServedModel


class Advancing(Job[Result]):
    """Steps on their way through the engine."""

    def start(self, model: ServedModel, program: ClipProgram) -> None:
        """Submit them. Raises EngineDown."""
        request = self.request(program)
        (result,) = self.runtime.engine.submit(model.lane.name, [request])
        for name, row in zip(model.config.model.modalities, program.clip.present, strict=True):
            self.runtime.metrics.steps_total.labels(model.name, name, "input").inc(int(row.sum()))
        self.answer.add_done_callback(lambda _: result.cancel())
        result.add_done_callback(self._finish)

    def _finish(self, result: Future[Result]) -> None:
        if result.cancelled():
            return
        if (error := result.exception()) is not None:
            self.fail(error)
        else:
            self.succeed(result.result())
