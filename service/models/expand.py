"""A dense Mamba made into a Mixture-of-Mamba of more modalities, to start training from."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from service.models.mixture_of_mamba import MixtureOfMamba
from service.models.mixture_of_mamba_config import PROJECTIONS
from service.models.vocabulary import TEXT, Medium

DEVIATION = 0.02  # of the rows that are new


@dataclass(frozen=True)
class AddedMedium:
    """A modality to add: how many ids it has, and the (fewest, most) of them that make one item."""

    ids: int
    codes: tuple[int, int]


def expanded(model: MixtureOfMamba, media: Mapping[str, AddedMedium], seed: int = 0) -> MixtureOfMamba:
    """A model with a copy of the dense model's projections for its text and each of `media`, in their order.

    The sentinels that open and close each medium follow the text's ids, the ids of the media follow them. The logits
    of the text's ids over text are those of the dense model; rows of new ids are small and random, by `seed`.
    Raises ValueError where the model is not dense or has other modalities than text.
    """
    old = model.vocabulary
    if model.config.split or old.modalities != (TEXT,):
        raise ValueError(f"a dense model of text is expected, got {old.modalities} with {model.config.split} split")
    text = old.sizes[TEXT]
    borders = {name: (text + 2 * place, text + 2 * place + 1) for place, name in enumerate(media)}
    vocabulary = replace(
        old,
        sizes={TEXT: text + 2 * len(media), **{name: medium.ids for name, medium in media.items()}},
        media={name: Medium(*borders[name], medium.codes) for name, medium in media.items()},
    )
    generator = torch.Generator().manual_seed(seed)

    def longer(rows: Tensor) -> Tensor:
        new = torch.randn(vocabulary.size - text, rows.shape[1], generator=generator) * DEVIATION
        return torch.cat([rows, new.to(rows.dtype)])

    state = {}
    for name, tensor in model.state_dict().items():
        kind = name.rpartition(".")[2]
        copied = kind in (*PROJECTIONS, "dt_bias")
        copies = (len(vocabulary.modalities), *[1] * (tensor.dim() - 1))
        state[name] = tensor.repeat(copies) if copied else longer(tensor) if kind in ("embedding", "head") else tensor
    with torch.device("meta"):
        wide = MixtureOfMamba(replace(model.config, split=PROJECTIONS), vocabulary).eval().requires_grad_(False)
    wide.borders = vocabulary.borders()
    wide.load_state_dict({name: tensor.clone() for name, tensor in state.items()}, assign=True)
    return wide
