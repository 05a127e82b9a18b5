"""What is served on a GPU, run once so that every kernel is called as it will be: nothing is computed here."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from functools import partial
from pathlib import Path

import torch

from service.models.base import Chunk, TokenChunk, allocate
from service.models.checkpoint import load_checkpoint
from service.models.coupled_mamba import CoupledMamba
from service.models.coupled_mamba_config import CoupledMambaConfig
from service.models.coupled_mamba_triton import CoupledMambaTriton
from service.models.ensemble import Ensemble
from service.models.generative_checkpoint import ARCHITECTURE as GENERATIVE
from service.models.generative_checkpoint import load_generative
from service.models.mixture_of_mamba import MixtureOfMamba
from service.models.mixture_of_mamba_config import MixtureOfMambaConfig
from service.models.mixture_of_mamba_triton import MixtureOfMambaTriton
from service.models.registry import architecture_of
from service.models.triton_graphs import BUCKETS
from service.models.vocabulary import Medium, Vocabulary

CPU = torch.device("cpu")
LARGE = MixtureOfMambaConfig(d_model=2048, n_layers=1)  # the widths of the benchmark; layers share their kernels
LARGE_VOCABULARY = Vocabulary(
    {"text": 50_000, "image": 8192, "speech": 500},
    bos=0,
    eos=1,
    media={"image": Medium(2, 3, (1024, 1024)), "speech": Medium(4, 5, (1, 2000))},
)
RELEASED = {"text": 768, "audio": 74, "video": 35}  # widths of the released checkpoints' features, on MOSEI

Run = Callable[[], None]


def of_folders(folders: Iterable[Path]) -> Iterator[tuple[str, Run]]:
    """(name, run) of the models in checkpoint folders, in the dtype that they are stored in."""
    for folder in folders:
        yield folder.name, partial(_run_folder, folder)


def of_benchmarks() -> Iterator[tuple[str, Run]]:
    """(name, run) of the shapes that `benchmarks/gpu` measures, of random weights."""
    for dtype in (torch.bfloat16, torch.float32):
        name = str(dtype).removeprefix("torch.")
        yield f"mixture {LARGE.d_model} {name}", partial(_run_large, dtype)
        for coupling in ("mean", "learned"):
            config = CoupledMambaConfig(modalities=RELEASED, d_model=128, n_layers=1, d_state=64, coupling=coupling)
            yield f"coupled {coupling} {config.d_model} {name}", partial(run_coupled, CoupledMamba(config), dtype)


def _run_large(dtype: torch.dtype) -> None:
    run_mixture(MixtureOfMamba(LARGE, LARGE_VOCABULARY), dtype)


def _run_folder(folder: Path) -> None:
    if architecture_of(folder) == GENERATIVE:
        generative = load_generative(folder)
        run_mixture(generative.model, generative.dtype)
    else:
        coupled = load_checkpoint(folder)
        models = coupled.model.each() if isinstance(coupled.model, Ensemble) else [coupled.model]
        for model in {str(model.config): model for model in models}.values():
            run_coupled(model, coupled.dtype)


def run_mixture(model: MixtureOfMamba, dtype: torch.dtype) -> None:
    """A chunk, and a step of each size of batch."""
    program = MixtureOfMambaTriton(model, dtype=dtype, graphs=False, device=CPU)
    state = allocate(program.state_tensors(), BUCKETS[-1] + 1)
    for sequences, rows in ((2, 3), *((size, size) for size in BUCKETS)):
        offsets = torch.arange(sequences + 1)
        offsets[-1] = rows
        chunk = TokenChunk(
            tokens=torch.zeros(rows, dtype=torch.int64),
            offsets=offsets,
            slots=torch.arange(sequences),
            fresh=torch.ones(sequences, dtype=torch.bool),
            reads=torch.arange(rows),
        )
        program.run(chunk, state)


def run_coupled(model: CoupledMamba, dtype: torch.dtype) -> None:
    """A chunk of two sequences, and one of a single step."""
    program = CoupledMambaTriton(model, dtype=dtype, device=CPU)
    state = allocate(program.state_tensors(), 3)
    widths = model.config.modalities
    for lengths in ([2, 1], [1]):
        rows = sum(lengths)
        chunk = Chunk(
            inputs={name: torch.zeros(rows, width) for name, width in widths.items()},
            present=torch.ones(len(widths), rows, dtype=torch.bool),
            offsets=torch.tensor([0, *lengths]).cumsum(0),
            slots=torch.arange(len(lengths)),
            fresh=torch.ones(len(lengths), dtype=torch.bool),
            reads=torch.tensor([rows - 1]),
        )
        program.run(chunk, state)
