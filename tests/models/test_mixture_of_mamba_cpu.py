"""The compiled Mixture-of-Mamba: the reference's answers, and the same bits whatever it is batched with."""

from __future__ import annotations

import multiprocessing
from collections.abc import Sequence
from functools import cache
from itertools import pairwise
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from service.kernels.cpu import INSTRUCTION_SETS
from service.models.base import State
from service.models.mixture_of_mamba_cpu import MixtureOfMambaProgram
from tests.bits import bits
from tests.generative import generative_model
from tests.models.packed_tokens import (
    BROKEN,
    WRONG,
    assert_equals_reference,
    assert_reads_in_order,
    assert_refused,
    assert_state_refused,
    chunk_of,
    poisoned,
    prompts,
)

SPLITS = (("in_proj", "x_proj", "dt_proj", "out_proj"), (), ("in_proj", "dt_proj"))
FORMS: list[dict[str, Any]] = [
    *({"split": split} for split in SPLITS),
    {"split": (), "dt_bias": False, "tied": False},
    {"d_model": 33, "d_inner": 65, "d_state": 17, "d_conv": 3, "dt_rank": 3},
    {"d_model": 1, "d_inner": 1, "d_state": 1, "d_conv": 2, "dt_rank": 1},
]
every_set = pytest.mark.parametrize("isa", INSTRUCTION_SETS)
DTYPES = pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)


@cache
def program(
    form: int = 4, dtype: torch.dtype = torch.bfloat16, isa: str = INSTRUCTION_SETS[-1], **sizes: int
) -> MixtureOfMambaProgram:
    return MixtureOfMambaProgram(generative_model(**FORMS[form]), dtype=dtype, isa=isa, **sizes)


def run_cut(executable: Any, prompt: Tensor, at: Sequence[int], slot: int, state: State) -> Tensor:
    """One prompt in chunks that end at the steps `at` -> logits of every step."""
    bounds = [0, *sorted(min(cut, len(prompt)) for cut in at), len(prompt)]
    parts = [
        executable.run(chunk_of([prompt[begin:end]], [slot], [turn == 0]), state)
        for turn, (begin, end) in enumerate(pairwise(bounds))
    ]
    return torch.cat(parts)


@every_set
@pytest.mark.parametrize("form", range(len(FORMS)))
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-5), (torch.bfloat16, 3e-2)], ids=str)
def test_equals_the_reference_in_float64(isa: str, form: int, dtype: torch.dtype, tolerance: float) -> None:
    model = generative_model(**FORMS[form])
    executable = MixtureOfMambaProgram(model, dtype=dtype, isa=isa, block_rows=7)  # blocks cut the sequences
    assert_equals_reference(executable, model, [9, 0, 5, 1, 3], dtype, tolerance)


@every_set
@DTYPES
@settings(max_examples=20)
@given(
    lengths=st.lists(st.integers(0, 12), min_size=1, max_size=6),
    at=st.lists(st.integers(0, 12), max_size=5),
    seed=st.integers(0, 99),
)
def test_alone_in_a_batch_and_in_chunks_it_is_the_same_bits(
    isa: str, dtype: torch.dtype, lengths: list[int], at: list[int], seed: int
) -> None:
    executable, parts = program(4, dtype, isa), prompts(lengths, seed)
    slots = [3 + i for i in range(len(parts))][::-1]
    together = poisoned(executable, len(parts) + 3)
    logits = executable.run(chunk_of(parts, slots, [True] * len(parts)), together)
    for prompt, expected, slot in zip(parts, logits.split(lengths), slots, strict=True):
        alone = poisoned(executable, 2)
        assert bits(run_cut(executable, prompt, at, 0, alone)) == bits(expected)
        for name in alone:
            assert bits(alone[name][0]) == bits(together[name][slot])


@DTYPES
def test_a_wide_batch_decodes_the_bits_of_each_alone(dtype: torch.dtype) -> None:
    executable = program(0, dtype)
    parts = prompts([1] * 67, seed=3)
    together = poisoned(executable, 67)
    slots = list(range(67))
    first = executable.run(chunk_of(parts, slots, [True] * 67), together)
    second = executable.run(chunk_of(parts[::-1], slots, [False] * 67), together)
    for i in range(67):
        alone = poisoned(executable, 1)
        assert bits(executable.run(chunk_of([parts[i]], [0], [True]), alone)[0]) == bits(first[i])
        assert bits(executable.run(chunk_of([parts[66 - i]], [0], [False]), alone)[0]) == bits(second[i])


@every_set
@DTYPES
def test_a_long_prompt_among_others_is_the_same_bits_in_chunks_of_any_size(isa: str, dtype: torch.dtype) -> None:
    # More than a block of rows, and sums longer than one slice of a panel of weights.
    executable = MixtureOfMambaProgram(
        generative_model(d_model=140, d_inner=130, n_layers=1), dtype=dtype, isa=isa, block_rows=256
    )
    lengths = [1, 300, 7]
    parts, slots = prompts(lengths, seed=5), [2, 0, 1]
    together = poisoned(executable, 3)
    every = executable.run(chunk_of(parts, slots, [True] * 3), together).split(lengths)
    for prompt, expected, slot, at in zip(parts, every, slots, ([], [1, 12, 257, 299], [0, 3]), strict=True):
        alone = poisoned(executable, 2)
        assert bits(run_cut(executable, prompt, at, 1, alone)) == bits(expected)
        for name in alone:
            assert bits(alone[name][1]) == bits(together[name][slot])


@DTYPES
def test_neither_threads_nor_blocks_change_a_bit(dtype: torch.dtype) -> None:
    # Wide enough that a step is shared among the threads asked for.
    model = generative_model(d_model=192, d_inner=400, d_state=8, n_layers=2)
    chunk = chunk_of(prompts([40, 3, 25]), [0, 1, 2], [True] * 3)
    answers = set()
    for threads, block_rows in ((1, 512), (2, 512), (5, 512), (2, 16), (1, 1)):
        executable = MixtureOfMambaProgram(model, dtype=dtype, threads=threads, block_rows=block_rows)
        answers.add(bits(executable.run(chunk, poisoned(executable, 3))))
    assert len(answers) == 1


def test_reads_come_in_the_order_they_were_asked_for() -> None:
    assert_reads_in_order(program(block_rows=5), [6, 4])


@pytest.mark.parametrize(("name", "wrong"), WRONG)
def test_a_wrong_chunk_is_refused_before_anything_is_written(name: str, wrong: Tensor) -> None:
    assert_refused(program(), name, wrong)


@pytest.mark.parametrize(
    "broken",
    [
        *BROKEN,
        lambda state: {**state, "ssm": torch.empty(6, *state["ssm"].shape[1:])[::2]},
        lambda state: {**state, "ssm": state["ssm"].to("meta")},
    ],
)
def test_a_state_that_is_not_as_allocated_is_refused(broken: Any) -> None:
    assert_state_refused(program(), broken)


@pytest.mark.filterwarnings("ignore:.*multi-threaded:DeprecationWarning")  # Python 3.12 warns of what is tested here
def test_a_forked_child_computes_with_threads_of_its_own() -> None:
    executable = MixtureOfMambaProgram(generative_model(d_model=192, d_inner=400), threads=2)
    chunk = chunk_of(prompts([40]), [0], [True])
    expected = bits(executable.run(chunk, poisoned(executable, 1)))
    context = multiprocessing.get_context("fork")
    receiver, sender = context.Pipe(duplex=False)
    child = context.Process(target=lambda: sender.send(bits(executable.run(chunk, poisoned(executable, 1)))))
    child.start()
    assert receiver.poll(60)
    assert receiver.recv() == expected
    child.join()
