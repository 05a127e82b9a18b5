"""What only a device can show: graphs, grids of more programs than run at once, and compiled additions."""

from __future__ import annotations

import pytest
import torch

pytest.importorskip("triton", reason="Triton is not installed: there are no GPU kernels")

from service.kernels import backends
from service.models.base import State, TokenChunk, allocate
from service.models.mixture_of_mamba_triton import MixtureOfMambaTriton
from tests.bits import bits
from tests.generative import VOCABULARY, generative_model
from tests.models.packed_tokens import chunk_of, prompts

pytestmark = pytest.mark.gpu
WIDE = {"d_model": 512, "d_inner": 1024, "d_state": 16, "dt_rank": 32}
DTYPES = pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)


def pool(program: MixtureOfMambaTriton, rows: int) -> State:
    return {name: tensor.fill_(torch.nan) for name, tensor in allocate(program.state_tensors(), rows, "cuda").items()}


def steps(rows: int, seed: int, fresh: bool) -> TokenChunk:
    tokens = prompts([1] * rows, seed)
    order = torch.randperm(rows, generator=torch.Generator().manual_seed(7)).tolist()
    return chunk_of(tokens, order, [fresh] * rows)


def test_it_is_the_default_here() -> None:
    assert backends.default_backend() == "triton"


@DTYPES
@pytest.mark.parametrize("rows", [1, 3, 64, 200, 256])
def test_a_graphs_replay_is_the_bits_of_its_kernels_launched(dtype: torch.dtype, rows: int) -> None:
    model = generative_model(**WIDE)
    answers = []
    for graphs in (True, False):
        program = MixtureOfMambaTriton(model, dtype=dtype, graphs=graphs)
        state = pool(program, rows + 1)
        logits = [program.run(steps(rows, seed, seed == 0), state).clone() for seed in range(4)]
        assert all(tensor[-1].isnan().all() for tensor in state.values())  # the scratch row
        answers.append((bits(torch.stack(logits)), *(bits(tensor[:rows].cpu()) for tensor in state.values())))
    assert answers[0] == answers[1]


@DTYPES
def test_a_step_in_a_wide_batch_is_the_bits_of_a_chunk_alone(dtype: torch.dtype) -> None:
    program, rows, length = MixtureOfMambaTriton(generative_model(**WIDE), dtype=dtype), 256, 5
    parts, state = prompts([length] * rows, seed=1), pool(MixtureOfMambaTriton(generative_model(**WIDE)), rows + 1)
    stepped = torch.stack(
        [
            program.run(
                chunk_of([part[t : t + 1] for part in parts], list(range(rows)), [t == 0] * rows), state
            ).clone()
            for t in range(length)
        ],
        dim=1,
    )
    for row in (0, 1, 77, 255):
        alone = pool(program, 1)
        assert bits(program.run(chunk_of([parts[row]], [0], [True]), alone)) == bits(stepped[row])
        assert all(bits(alone[name][0].cpu()) == bits(state[name][row].cpu()) for name in alone)


@DTYPES
def test_more_programs_than_run_at_once_leave_what_the_reference_leaves(dtype: torch.dtype) -> None:
    model = generative_model(**WIDE | {"n_layers": 1})
    if dtype == torch.bfloat16:
        for name, tensor in model.state_dict().items():
            if name.endswith("_proj") or name == "embedding":
                tensor.copy_(tensor.bfloat16())
    program, lengths = MixtureOfMambaTriton(model, dtype=dtype), [3, 1, 0, 5] * 128
    chunk = chunk_of(prompts(lengths), list(range(len(lengths))), [True] * len(lengths))
    expected_state = allocate(model.state_tensors(), len(lengths))
    expected = model.run(chunk, expected_state)
    tolerance, answers = (1e-4 if dtype == torch.float32 else 5e-2), set()
    for _ in range(3):
        state = pool(program, len(lengths))
        logits = program.run(chunk, state)
        torch.testing.assert_close(logits, expected, rtol=tolerance, atol=tolerance * float(expected.abs().max()))
        for name, tensor in state.items():
            scale = float(expected_state[name].abs().max())
            torch.testing.assert_close(tensor.cpu(), expected_state[name], rtol=tolerance, atol=tolerance * scale)
        answers.add(bits(logits))
    assert len(answers) == 1  # an error that moves is a race


def test_a_step_of_one_modality_reads_no_weights_of_the_others() -> None:
    model, image = generative_model(**WIDE), VOCABULARY.span("image").start
    for layer in model.blocks.layers:
        for name in ("in_proj", "x_proj", "dt_proj", "dt_bias", "out_proj"):
            getattr(layer, name)[[0, 2]] = torch.nan
    program = MixtureOfMambaTriton(model, dtype=torch.bfloat16)
    tokens = [torch.tensor([image + i % 7]) for i in range(70)]
    assert bool(program.run(chunk_of(tokens, list(range(70)), [True] * 70), pool(program, 71)).isfinite().all())
