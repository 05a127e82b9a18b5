"""Weights in bf16 in three quarters of their bytes: the same bits as unsqueezed, whatever the weights are."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from service.kernels.cpu import INSTRUCTION_SETS
from service.kernels.routed_linear.cpu import routed_linear
from service.models.base import allocate
from service.models.mixture_of_mamba import MixtureOfMamba
from service.models.mixture_of_mamba_cpu import MixtureOfMambaProgram
from service.models.vocabulary import Vocabulary
from tests.bits import bits
from tests.generative import generative_model
from tests.models.packed_tokens import chunk_of

SQUEEZING = tuple(name for name in INSTRUCTION_SETS if name in ("avx2", "avx512", "avx512bf16"))
NARROW = 48  # outputs: three registers, a panel that is never squeezed
every_set = pytest.mark.parametrize("isa", SQUEEZING)


def plain(random: torch.Generator, shape: tuple[int, ...]) -> Tensor:
    return torch.randn(shape, generator=random)


def of_many_magnitudes(random: torch.Generator, shape: tuple[int, ...]) -> Tensor:
    """So many that some steps in depth of every panel stay whole: those of one input in ten."""
    weight = torch.randn(shape, generator=random)
    wild = torch.rand(shape[-1], generator=random) < 0.1
    weight[..., wild] *= 2.0 ** torch.randint(-60, 60, (*shape[:-1], int(wild.sum())), generator=random)
    return weight


def of_few_values(random: torch.Generator, shape: tuple[int, ...]) -> Tensor:
    """Zeros of either sign, denormals and the largest: the table has room to spare."""
    values = torch.tensor([0.0, -0.0, 1.0, -1.0, 1e-40, -1e-39, 3e38])
    return values[torch.randint(len(values), shape, generator=random)]


def with_one_stranger(random: torch.Generator, shape: tuple[int, ...]) -> Tensor:
    """The last step in depth, and the first, stay whole for one weight each."""
    weight = torch.randn(shape, generator=random).clamp(-4, 4)
    weight[..., 0, 0], weight[..., -1, -1] = 1e30, -1e-30
    return weight


KINDS = (plain, of_many_magnitudes, of_few_values, with_one_stranger)


@every_set
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("inputs", [40, 129, 900])
def test_has_the_bits_of_unsqueezed_weights_for_any_number_of_rows(
    isa: str, kind: Callable[[torch.Generator, tuple[int, ...]], Tensor], inputs: int
) -> None:
    random = torch.Generator().manual_seed(inputs)
    weight = kind(random, (2, 3 * NARROW * 4, inputs)).bfloat16().float()
    x = torch.randn(200, inputs, generator=random) / 8
    for rows in (1, 5, 7, 12, 13, 40, 97, 200):
        route = torch.randint(2, (rows,), generator=random)
        wide = routed_linear(x[:rows], weight, None, route, dtype=torch.bfloat16, isa=isa)
        parts = [
            routed_linear(x[:rows], part.contiguous(), None, route, dtype=torch.bfloat16, isa=isa)
            for part in weight.split(NARROW, 1)
        ]
        assert bits(wide) == bits(torch.cat(parts, 1)), rows


def sized_model(scale: Callable[[Tensor], Tensor]) -> MixtureOfMamba:
    model = generative_model(d_model=128, d_inner=256, n_layers=2, split=())
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "proj" in name or name in ("embedding", "head"):
                parameter.copy_(scale(parameter))
    return model


@every_set
def test_logits_of_a_whole_prompt_have_the_bits_of_each_alone(isa: str) -> None:
    model = generative_model(vocabulary=Vocabulary({"text": 128}), d_model=40, split=())
    executable = MixtureOfMambaProgram(model, dtype=torch.bfloat16, isa=isa)
    assert executable.weight_bytes < MixtureOfMambaProgram(model, dtype=torch.bfloat16, isa="portable").weight_bytes
    prompt = torch.randint(128, (230,), generator=torch.Generator().manual_seed(0))
    state = allocate(executable.state_tensors(), 1)
    together = executable.run(chunk_of([prompt], [0], [True]), state)  # more rows than share what is unpacked
    for i, token in enumerate(prompt.split(1)):
        assert bits(executable.run(chunk_of([token], [0], [i == 0]), state)[0]) == bits(together[i]), i


@every_set
def test_weights_take_three_quarters_of_their_bytes(isa: str) -> None:
    model = sized_model(lambda weight: torch.randn_like(weight) / 16)
    squeezed = MixtureOfMambaProgram(model, dtype=torch.bfloat16, isa=isa).weight_bytes
    whole = MixtureOfMambaProgram(model, dtype=torch.bfloat16, isa="portable").weight_bytes
    maps = sum(2 * parameter.numel() for name, parameter in model.named_parameters() if "proj" in name)
    assert 0.22 * maps < whole - squeezed <= 0.25 * maps


@every_set
def test_weights_of_too_many_magnitudes_stay_as_they_are(isa: str) -> None:
    model = sized_model(lambda weight: torch.exp2(100 * torch.rand_like(weight) - 50))
    sizes = {MixtureOfMambaProgram(model, dtype=torch.bfloat16, isa=name).weight_bytes for name in (isa, "portable")}
    assert len(sizes) == 1
