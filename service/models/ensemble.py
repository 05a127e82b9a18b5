"""A deep ensemble (arXiv 1612.01474): Coupled Mambas of one layout, trained apart, whose outputs are averaged.

Each member runs from and into its own rows of a slot: `ssm` of member 1 is the state tensor `ssm.1`. For the engine,
an ensemble is a model like any other.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import cast

from torch import Tensor, nn

from service.models.base import Chunk, RecurrentModel, State, StateTensor, device_of
from service.models.coupled_mamba import CoupledMamba
from service.models.coupled_mamba_config import CoupledMambaConfig
from service.models.memory import OutOfMemory


class Ensemble(nn.Module):
    """The weights of `members` models: in a file, member 1's are `members.1.*`."""

    def __init__(self, members: Sequence[CoupledMamba]) -> None:
        """members: at least one, of one config. Raises ValueError where they are not."""
        super().__init__()
        if len({str(member.config) for member in members}) != 1:
            raise ValueError(f"the members of an ensemble have one config, got {[member.config for member in members]}")
        self.members = nn.ModuleList(members)

    @property
    def config(self) -> CoupledMambaConfig:
        """The sizes of every member."""
        return self.each()[0].config

    def each(self) -> list[CoupledMamba]:
        """The members in their order."""
        return [cast(CoupledMamba, member) for member in self.members]


class EnsembleProgram:
    """The executable of an ensemble: the executables of its members, one after the other.

    Keeps what they promise (`same_bits`, `isa`, `device`).
    """

    def __init__(self, members: Sequence[RecurrentModel[Chunk]]) -> None:
        self.members = tuple(members)
        first = self.members[0]
        self.same_bits: bool = getattr(first, "same_bits", False)
        self.isa: str | None = getattr(first, "isa", None)
        self.device = device_of(first)
        self._names = [
            {f"{name}.{i}": name for name in member.state_tensors()} for i, member in enumerate(self.members)
        ]

    @property
    def weight_bytes(self) -> int | None:
        """Bytes of the packed weights; None where members do not pack any."""
        packed: list[int | None] = [getattr(member, "weight_bytes", None) for member in self.members]
        return None if None in packed else sum(cast(list[int], packed))

    def state_tensors(self) -> Mapping[str, StateTensor]:
        """The members' tensors, the number of the member at the end of each name."""
        every = [(names, member.state_tensors()) for names, member in zip(self._names, self.members, strict=True)]
        return {whole: tensors[name] for names, tensors in every for whole, name in names.items()}

    def run(self, chunk: Chunk, state: State) -> Tensor:
        """Advance each sequence in every member -> the mean of their outputs [r, outputs or twice as many].

        Raises ValueError before anything is written, as the members do. Memory that a later member cannot have is a
        MemoryError but no OutOfMemory: those before it have advanced, so the step cannot run again.
        """
        total: Tensor | None = None  # added up in the members' order: the same bits in whatever batch
        for i, (member, names) in enumerate(zip(self.members, self._names, strict=True)):
            try:
                answer = member.run(chunk, {name: state[whole] for whole, name in names.items()})
            except OutOfMemory as error:
                if total is None:
                    raise
                raise MemoryError(f"member {i} of {len(self.members)}: {error}") from error
            total = answer if total is None else total + answer
        assert total is not None
        return total / len(self.members)
