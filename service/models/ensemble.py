"""A deep ensemble (arXiv 1612.01474): Coupled Mambas of one layout, trained apart, whose outputs are averaged.

A member may hear some of the modalities only (a random subspace each, Ho 1998): it knows nothing of the others, and
until it has heard something the mean goes without it. Each member runs from and into its own rows of a slot: `ssm` of
member 1 is the state tensor `ssm.1`. For the engine, an ensemble is a model like any other.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import cast

import torch
from torch import Tensor, nn

from service.models.base import Chunk, RecurrentModel, State, StateTensor, check_features, device_of
from service.models.coupled_mamba import CoupledMamba
from service.models.coupled_mamba_config import CoupledMambaConfig
from service.models.memory import OutOfMemory


class Ensemble(nn.Module):
    """The weights of some models: in a file, member 1's are `members.1.*`."""

    def __init__(self, config: CoupledMambaConfig, members: Sequence[CoupledMamba]) -> None:
        """members: at least one, each of `config` with those of its modalities that it hears, in the same order.

        Raises ValueError where one is of another layout, or where nobody hears a modality.
        """
        super().__init__()
        for member in members:
            heard = member.config.modalities
            if str(member.config) != str(of_member(config, [name for name in config.modalities if name in heard])):
                raise ValueError(f"the members of an ensemble have the layout {config}, got {member.config}")
        if deaf := [name for name in config.modalities if not any(name in m.config.modalities for m in members)]:
            raise ValueError(f"no member of the ensemble hears {', '.join(deaf)}")
        self.config = config
        self.members = nn.ModuleList(members)

    def hears(self) -> list[list[str]]:
        """The modalities of each member."""
        return [list(member.config.modalities) for member in self.each()]

    def each(self) -> list[CoupledMamba]:
        """The members in their order."""
        return [cast(CoupledMamba, member) for member in self.members]


def of_member(config: CoupledMambaConfig, hears: Sequence[str]) -> CoupledMambaConfig:
    """The layout of a member that hears `hears` of the modalities of `config`."""
    return replace(config, modalities={name: config.modalities[name] for name in hears})


class EnsembleProgram:
    """The executable of an ensemble: the executables of its members, one after the other.

    Keeps what they promise (`same_bits`, `isa`, `device`).
    """

    def __init__(
        self, members: Sequence[RecurrentModel[Chunk]], modalities: Mapping[str, int], hears: Sequence[Sequence[str]]
    ) -> None:
        """modalities {name: width} of the ensemble; hears: those of each member, in the same order."""
        self.members, self._modalities = tuple(members), modalities
        order = list(modalities)
        every = [[order.index(name) for name in names] for names in hears]
        # The rows of `Chunk.present` of a member that does not hear all of them.
        self._rows = [None if len(rows) == len(order) else torch.tensor(rows) for rows in every]
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

        Members that have heard nothing yet are left out; NaN where that is all of them. Raises ValueError before
        anything is written, as the members do. Memory that a later member cannot have is a MemoryError but no
        OutOfMemory: those before it have advanced, so the step cannot run again.
        """
        check_features(chunk, self._modalities)  # a member sees its part alone
        answers: list[Tensor] = []
        for i, (member, names, rows) in enumerate(zip(self.members, self._names, self._rows, strict=True)):
            part = chunk if rows is None else replace(chunk, present=chunk.present[rows])
            try:
                answers.append(member.run(part, {name: state[whole] for whole, name in names.items()}))
            except OutOfMemory as error:
                if i == 0:
                    raise
                raise MemoryError(f"member {i} of {len(self.members)}: {error}") from error
        return self._mean(answers)

    def _mean(self, answers: Sequence[Tensor]) -> Tensor:
        """Of the members that have an answer, added up in their order: the same bits in whatever batch."""
        total = answers[0]
        for answer in answers[1:]:
            total = total + answer
        if not bool(total.isnan().any()):
            return total / len(answers)
        total, count = torch.full_like(total, -0.0), torch.zeros_like(total)  # -0.0 + x is x, in every bit
        for answer, rows in zip(answers, self._rows, strict=True):
            # Who hears everything has heard what the others have: a NaN of theirs is never left out.
            known = torch.ones_like(answer, dtype=torch.bool) if rows is None else ~answer.isnan()
            total = total + torch.where(known, answer, -0.0)
            count = count + known
        return total / count
