"""One clip and 32 clips of 50 steps of three modalities, through the engine: submitted -> the last result is there.

`layers` is the released layout with the sizes it has for MOSEI; `mean` is the coupled recurrence with the sizes of a
bundled checkpoint. The rivals are the same model with the same weights in plain PyTorch (benchmarks/peers.py), the
released one also in the order and layout in which its authors' code runs it without its CUDA kernels, here and in a
process of its own, as who tries it has it. They are called directly, the clips as one batch: the engine's queue, thread
and packing count against us. The released layout is timed as it is served, in fp32, and with its maps in bf16, as
`--dtype bfloat16` serves it, against the authors' code in fp32.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from benchmarks import peers
from benchmarks.alone import Alone, alone
from benchmarks.figures import Bench, Figure
from benchmarks.floors import coupled_mamba_needs
from service.engine.clip_program import ClipProgram
from service.engine.engine import Engine, Lane, Limits
from service.engine.request import Request
from service.engine.runner import ClipRunner
from service.features.types import Clip
from service.metrics import Metrics
from service.models.convert import coupled_mamba_from_release
from service.models.coupled_mamba import CoupledMamba
from service.models.coupled_mamba_config import CoupledMambaConfig
from service.models.executables import make_executable

STEPS = 50
SEED = 0  # of all random weights
COUNTS = (1, 32)
LIMITS = Limits(slots=64, chunk_steps=512, step_budget=4096)  # the service's defaults
TOLERANCE = {torch.float32: 1e-4, torch.bfloat16: 5e-2}

MAMBA_STYLE, STEPWISE = "PyTorch, Mamba's reference scan", "PyTorch, step by step"
AUTHORS = "PyTorch, as the authors' code goes"
ALONE = f"{AUTHORS}, own process"
FORMS = (AUTHORS, MAMBA_STYLE, STEPWISE)

Model = Callable[[], tuple[CoupledMamba, dict[str, nn.Module]]]  # ours, and the rivals by their names

RELEASED = CoupledMambaConfig(
    modalities={"text": 768, "audio": 74, "video": 35},
    d_model=128,
    n_layers=3,
    d_state=64,
    dt_rank=16,
    coupling="layers",
    input="mlp",
    d_input=256,
    pool=("max",),
    modality_weights="ratio",
    d_head=64,
)
COUPLED = CoupledMambaConfig(
    modalities={"text": 384, "audio": 25, "video": 35},
    d_model=64,
    n_layers=2,
    d_state=8,
    dt_rank=4,
    outputs={"sentiment": 1, "label": 3, "emotion": 8},
)


def run(
    bench: Bench, models: Sequence[Model] | None = None, forms: Sequence[str] = FORMS, others: bool = True
) -> Iterator[Figure]:
    """Both models, both counts, against every one of `forms` that the rival has.

    others: the authors' code in a process of its own too, and the released layout in bf16.
    """
    for build in models or (released, coupled):
        torch.manual_seed(SEED)
        ours, rivals = build()
        rivals = {name: rivals[name] for name in forms if name in rivals}
        if others and AUTHORS in rivals:
            with alone() as other:
                yield from _figures(bench, ours, rivals, torch.float32, other)
                yield from _figures(bench, ours, {AUTHORS: rivals[AUTHORS]}, torch.bfloat16, other)
        else:
            yield from _figures(bench, ours, rivals, torch.float32, None)


def _figures(
    bench: Bench, ours: CoupledMamba, rivals: Mapping[str, nn.Module], dtype: torch.dtype, other: Alone | None
) -> Iterator[Figure]:
    engine = Engine([lane_of(ours, dtype)], threads=1)
    engine.start()
    try:
        for count in COUNTS:
            yield from _compare(bench, engine, ours, rivals, count, dtype, other)
    finally:
        engine.stop()


def released() -> tuple[CoupledMamba, dict[str, nn.Module]]:
    """The released model, read from the rival's weights by the converter of released checkpoints."""
    rivals = {
        AUTHORS: peers.Released(RELEASED),
        MAMBA_STYLE: peers.Released(RELEASED, peers.selective_scan),
        STEPWISE: peers.Released(RELEASED, peers.selective_scan_lean),
    }
    first, *others = (rival.eval().requires_grad_(False) for rival in rivals.values())
    _outspoken(first)
    for other in others:
        other.load_state_dict(first.state_dict())
    return coupled_mamba_from_release(first.state_dict()), rivals


def coupled() -> tuple[CoupledMamba, dict[str, nn.Module]]:
    """The coupled recurrence; its rivals keep the M chains apart."""
    ours = CoupledMamba(COUPLED).eval().requires_grad_(False)
    _outspoken(ours)
    rivals = {
        MAMBA_STYLE: peers.Coupled.of(ours),
        STEPWISE: peers.Coupled.of(ours, peers.coupled_scan_lean),
    }
    return ours, {name: rival.eval().requires_grad_(False) for name, rival in rivals.items()}


def _outspoken(model: nn.Module) -> None:
    """Scale random weights until the states outweigh the skip D: a wrong recurrence must show in the answers."""
    for name, tensor in model.state_dict().items():
        if name.endswith(("in_proj.weight", "x_proj.weight")):
            tensor.mul_(4)
        elif name.endswith("dt_proj.bias"):
            tensor.add_(2)  # steps seven times as large, for the smaller ones


def lane_of(model: CoupledMamba, dtype: torch.dtype = torch.float32) -> Lane:
    """The model as the service runs it without a GPU, with the service's defaults, under the name `bench`."""
    executable = make_executable(model, "cpu", dtype, threads=1)
    return Lane("bench", ClipRunner(executable, model.config.modalities, LIMITS.slots), LIMITS, Metrics())


def clips(config: CoupledMambaConfig, count: int) -> list[Clip]:
    """Random clips, every modality present at every step."""
    random = np.random.default_rng(0)
    present, times = np.ones((len(config.modalities), STEPS), bool), np.arange(STEPS, dtype=np.float64)
    return [
        Clip(
            {m: random.standard_normal((STEPS, d), dtype=np.float32) for m, d in config.modalities.items()},
            present,
            times,
        )
        for _ in range(count)
    ]


def through_engine(engine: Engine, batch: list[Clip]) -> NDArray[np.float32]:
    """Submit clips together and wait for all -> [clips, outputs]."""
    futures = engine.submit("bench", [Request("bench", ClipProgram(clip)) for clip in batch])
    return np.concatenate([future.result().outputs for future in futures])


@torch.inference_mode()
def through_rival(rival: nn.Module, batch: list[Clip]) -> NDArray[np.float32]:
    """One padded batch -> [clips, outputs]."""
    inputs = {m: torch.from_numpy(np.stack([clip.values[m] for clip in batch])) for m in batch[0].values}
    return rival(inputs).numpy()


def _compare(
    bench: Bench,
    engine: Engine,
    ours: CoupledMamba,
    rivals: Mapping[str, nn.Module],
    count: int,
    dtype: torch.dtype,
    other: Alone | None,
) -> Iterator[Figure]:
    batch = clips(ours.config, count)
    here: dict[str, Callable[[], NDArray[np.float32]]] = {"ours": lambda: through_engine(engine, batch)}
    here |= {name: lambda rival=rival: through_rival(rival, batch) for name, rival in rivals.items()}
    answers = {name: run() for name, run in here.items()}
    runs: dict[str, Callable[[], object]] = dict(here)
    if other is not None:
        answers[ALONE], runs[ALONE] = other.outputs(count, STEPS), lambda: other.run(count, STEPS)
    rounded = ", bf16" if dtype == torch.bfloat16 else ""
    work = f"predict_engine/{ours.config.coupling}{rounded}/{count} clip{'s' * (count > 1)}"
    apart = {name: float(np.abs(answers[name] - answers["ours"]).max()) for name in answers if name != "ours"}
    if not max(apart.values()) <= TOLERANCE[dtype]:
        raise RuntimeError(f"{work}: the answers differ by {apart}, more than {TOLERANCE[dtype]}: nothing to compare")
    timings = bench.compare(runs)
    weights = sum(parameter.numel() for parameter in ours.parameters())
    floor = coupled_mamba_needs(ours.config, count, STEPS, weights, dtype).floor(bench.rates)
    for name in apart:
        yield Figure.of(work, timings["ours"], timings[name], name, floor=floor, disagreement=apart[name])
