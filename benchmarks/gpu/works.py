"""The works: decoding, a batch of clips, and the update of the state by itself."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from itertools import cycle

import torch
from torch import Tensor

from benchmarks.gpu.measure import Figure, copy_bandwidth, exponential_rate, median_ms
from service.kernels.selective_scan.mamba_ssm import selective_scan_step
from service.kernels.selective_scan.triton import launch_selective_scan
from service.kernels.triton.select import Sequences
from service.models.base import State, TokenChunk, allocate
from service.models.coupled_mamba import CoupledMamba
from service.models.coupled_mamba_config import CoupledMambaConfig
from service.models.coupled_mamba_triton import CoupledMambaTriton
from service.models.mixture_of_mamba import MixtureOfMamba
from service.models.mixture_of_mamba_config import MixtureOfMambaConfig
from service.models.mixture_of_mamba_triton import MixtureOfMambaTriton
from service.models.triton_variants import LARGE, LARGE_VOCABULARY, RELEASED

BLOCKS = 48
BATCHES = (1, 64, 256)
CLIPS, STEPS = 256, 50


def decode() -> Iterator[Figure]:
    """One step of a Mixture-of-Mamba of 48 blocks, bf16, its graph alone; one modality in the batch, and all three."""
    bandwidth = copy_bandwidth()
    config = MixtureOfMambaConfig(**(LARGE.to_json() | {"n_layers": BLOCKS}))
    with torch.device("cuda"):
        program = MixtureOfMambaTriton(MixtureOfMamba(config, LARGE_VOCABULARY), dtype=torch.bfloat16)
    state = allocate(program.state_tensors(), BATCHES[-1] + 1, "cuda")
    starts = [LARGE_VOCABULARY.span(name).start + 9 for name in LARGE_VOCABULARY.modalities]
    for batch in BATCHES:
        for hit in (1, len(starts)) if batch > 1 else (1,):
            tokens = torch.tensor([starts[row % hit] + row for row in range(batch)])
            step(program, tokens, state)
            floor = (touched_bytes(program, hit) + 2 * batch * slot_bytes(state)) / bandwidth
            taken = median_ms(lambda batch=batch: program.buckets.again(batch, state))
            yield Figure(f"decode, batch {batch}, modalities {hit}", taken, floor, "memory")


def step(program: MixtureOfMambaTriton, tokens: Tensor, state: State) -> Tensor:
    """A step of each token on a slot of its own, from the initial state."""
    rows = tokens.shape[0]
    offsets, fresh = torch.arange(rows + 1), torch.ones(rows, dtype=torch.bool)
    return program.run(
        TokenChunk(tokens=tokens, offsets=offsets, slots=offsets[:-1], fresh=fresh, reads=offsets[:-1]), state
    )


def slot_bytes(state: State) -> int:
    """Bytes of one row of a pool."""
    return sum(tensor[0].numel() * tensor.element_size() for tensor in state.values())


def touched_bytes(program: MixtureOfMambaTriton, modalities: int) -> int:
    """Bytes of weights that a step of tokens of so many modalities reads; of the embedding, as the head."""
    every = len(program.vocabulary.modalities)
    split = program.split_bytes
    return program.weight_bytes - split + split * modalities // every


def clips() -> Iterator[Figure]:
    """256 clips of 50 steps of three modalities in the released layout, N = 64, three layers: kernels in a graph."""
    config = CoupledMambaConfig(modalities=RELEASED, d_model=128, n_layers=3, d_state=64)
    for dtype in (torch.bfloat16, torch.float32):
        program = CoupledMambaTriton(CoupledMamba(config), dtype=dtype)
        state = allocate(program.state_tensors(), CLIPS + 1, "cuda")
        rows = CLIPS * STEPS
        inputs = {name: torch.randn(rows, width, device="cuda") for name, width in RELEASED.items()}
        present = torch.ones(len(RELEASED), rows, dtype=torch.bool, device="cuda")
        offsets = torch.arange(CLIPS + 1, device="cuda") * STEPS
        fresh = torch.ones(CLIPS, dtype=torch.bool, device="cuda")
        sequence_of = torch.arange(rows, device="cuda") // STEPS
        sequences = Sequences(offsets, torch.arange(CLIPS, device="cuda"), fresh, sequence_of, steps=False)
        reads = offsets[1:] - 1
        work: tuple[object, ...] = (inputs, present, reads, sequences, state, False)
        taken = median_ms(captured(lambda program=program, work=work: program.advance(*work)))
        exponentials = rows * len(RELEASED) * config.n_layers * config.d_state * config.d_inner
        name = str(dtype).removeprefix("torch.")
        yield Figure(f"clips {CLIPS} x {STEPS} x 3, {name}", taken, exponentials / exponential_rate(), "exponentials")


def captured(run: Callable[[], object]) -> Callable[[], object]:
    """The same as one graph: what is left is the device's work."""
    for _ in range(2):  # kernels are loaded, which a capture could not
        run()
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        run()
    return graph.replay


def update() -> Iterator[Figure]:
    """The state update of one layer by itself, over pools that do not fit into the cache, beside mamba-ssm's."""
    bandwidth, (batch, states, channels) = copy_bandwidth(), (256, 16, 4096)
    pools = [torch.randn(batch, states, channels, device="cuda") for _ in range(8)]
    x, dt = (torch.rand(batch, channels, device="cuda") for _ in range(2))
    B, C = (torch.randn(batch, states, device="cuda") for _ in range(2))
    A, D = -torch.rand(states, channels, device="cuda"), torch.randn(channels, device="cuda")
    slots, y = torch.randperm(batch, device="cuda"), torch.empty(batch, channels, device="cuda")
    on = {"slots": slots, "fresh": torch.zeros(batch, dtype=torch.bool, device="cuda")}
    offsets, ours, theirs = torch.arange(batch + 1, device="cuda"), cycle(pools), cycle(pools)
    floor = 2 * pools[0].numel() * pools[0].element_size() / bandwidth
    taken = median_ms(lambda: launch_selective_scan(x, dt, A, B, C, D, y, state=next(ours), offsets=offsets, **on))
    try:
        peer: float | None = median_ms(lambda: selective_scan_step(x, dt, A, B, C, D, state=next(theirs), **on))
    except ValueError as error:
        print(error)
        peer = None
    yield Figure("state update, batch 256", taken, floor, "memory", None if peer is None else "mamba-ssm", peer)


WORKS: dict[str, Callable[[], Iterator[Figure]]] = {"decode": decode, "clips": clips, "update": update}
