"""A token of the bundled digits-trio, one sequence: the compiled program against the reference backend."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch
from torch import Tensor

from benchmarks.figures import Bench, Figure
from benchmarks.floors import mixture_of_mamba_needs
from service.models.base import RecurrentModel, TokenChunk, allocate
from service.models.executables import make_executable
from service.models.generative_checkpoint import load_generative
from service.settings import BUNDLED

TOLERANCE = 1e-4  # of the largest logit
REFERENCE = "ours, the reference backend"


def run(bench: Bench) -> Iterator[Figure]:
    """A step of one token, on one thread."""
    model = load_generative(BUNDLED / "digits-trio").model
    tokens = torch.randint(model.vocabulary.size, (32,), generator=torch.Generator().manual_seed(0))
    sides = {name: make_executable(model, name, threads=1) for name in ("cpu", "reference")}
    answers, steps = {}, {}
    for name, executable in sides.items():
        answers[name], steps[name] = _stepping(executable, tokens)
    apart = float((answers["cpu"] - answers["reference"]).abs().max() / answers["reference"].abs().max())
    work = "digits_trio/a token, 1 at once"
    if not apart <= TOLERANCE:
        raise RuntimeError(f"{work}: logits differ by {apart} of the largest, more than {TOLERANCE}")
    timings = bench.compare(steps)
    cached = 0  # its weights need not come from memory
    floor = mixture_of_mamba_needs(model.config, model.vocabulary.size, 1, 1, 1, cached).floor(bench.rates)
    yield Figure.of(work, timings["cpu"], timings["reference"], REFERENCE, floor=floor, disagreement=apart)


def _stepping(executable: RecurrentModel[TokenChunk], tokens: Tensor) -> tuple[Tensor, Callable[[], Tensor]]:
    """The last logits after a prompt, and a call that takes its last token again and again."""
    state = allocate(executable.state_tensors(), 1)

    def step(tokens: Tensor, fresh: bool) -> Callable[[], Tensor]:
        count = tokens.shape[0]
        chunk = TokenChunk(
            tokens=tokens,
            offsets=torch.tensor([0, count]),
            slots=torch.tensor([0]),
            fresh=torch.tensor([fresh]),
            reads=torch.tensor([count - 1]),
        )
        return torch.inference_mode()(lambda: executable.run(chunk, state))

    step(tokens[:-1], True)()
    again = step(tokens[-1:], False)
    return again(), again
