"""Driving the Triton programs in tests: chunks and states of the CPU, wherever the kernels run."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from service.models.base import State


class Anywhere:
    """A program whose state is given and left on the CPU."""

    def __init__(self, program: Any) -> None:
        self.program = program

    def __getattr__(self, name: str) -> Any:
        return getattr(self.program, name)

    def run(self, chunk: Any, state: State) -> Tensor:
        there = {name: tensor.to(self.program.device) for name, tensor in state.items()}
        outputs: Tensor = self.program.run(chunk, there).clone()
        for name, tensor in there.items():
            if tensor is not state[name]:
                state[name].copy_(tensor)
        return outputs
