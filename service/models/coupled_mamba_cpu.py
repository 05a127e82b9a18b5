"""Coupled Mamba as one compiled call a chunk: weights packed once, workspace allocated at the start."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, cast

import torch
from torch import Tensor, nn

from service.kernels.cpu import BEST, THREADS, _native
from service.models.base import Chunk, State, StateTensor, check_features, check_state
from service.models.coupled_mamba import CoupledMamba
from service.models.cpu_packing import chunk_packing
from service.models.memory import allocating
from service.models.stacked import EPS

BLOCK_ROWS = (
    128  # steps that the workspace holds, in the cache; a longer chunk runs in blocks of so many, with the same bits
)
NONE = [0, 0]  # addresses of a weight and a bias that are not there


class CoupledMambaProgram:
    """The executable of a `CoupledMamba` for the backend `cpu`. The state is that of the reference, slot for slot.

    dtype float32, or bfloat16: weights of the projections, and what they multiply, are rounded to bf16; sums, the
    convolution, the scan, norms and the state stay fp32, and of the head the weights are rounded, no more.
    threads: most threads of a step; a small step takes fewer. Their number changes no bit.
    isa: one of `service.kernels.cpu.INSTRUCTION_SETS`.
    Not for two threads at a time: the workspace is one.
    """

    same_bits = True

    def __init__(
        self,
        model: CoupledMamba,
        *,
        dtype: torch.dtype = torch.float32,
        threads: int | None = None,
        isa: str = BEST,
        block_rows: int = BLOCK_ROWS,
    ) -> None:
        self.config, self.dtype, self.isa, self.threads = model.config, dtype, isa, threads or THREADS
        self.device = torch.device("cpu")
        self._tensors = model.state_tensors()
        self._split, self._width = model.split, sum(model.config.outputs.values())
        self._held: list[Tensor] = []  # what C++ copies from, while it does
        c = model.config
        self._native = _native.Coupled(
            modalities=len(c.modalities),
            d_model=c.d_model,
            d_inner=c.d_inner,
            d_state=c.d_state,
            d_conv=c.d_conv,
            dt_rank=c.dt_rank,
            d_head=c.d_head,
            outputs=self._width,
            eps=EPS,
            rank_one=c.state_chains == 1 and len(c.modalities) > 1,
            renormalise=c.coupling != "sum",
            dense=c.dense,
            maximum="max" in c.pool,
            mean="mean" in c.pool,
            mean_first=c.pool[0] == "mean",
            dtype=str(dtype).removeprefix("torch."),
            isa=isa,
            block_rows=block_rows,
        )
        for name, width in c.modalities.items():
            self._add_input(cast(Any, model.inputs[name]), width)
        every = torch.arange(len(c.modalities))
        for index, layer in enumerate(model.layers):
            self._add_layer(cast(Any, layer), model._coupling(index, every))
        head = model.head
        weights = head.weights.exp() if c.modality_weights == "softmax" else head.weights
        self._native.add_ends(
            norm_f=self._pair(model.norm_f),
            cross=self._pair(model.cross, rounded=True) if c.dense else NONE,
            weights=self._plain(weights),
            dense=self._pair(head.dense, rounded=True),
            out_proj=self._pair(head.out_proj, rounded=True),
        )
        self._held.clear()

    def _add_input(self, layer: Any, width: int) -> None:
        linear, norm, second, second_norm = layer.project, None, None, None
        if isinstance(linear, nn.Sequential):
            linear, norm, _, second, second_norm = linear
        self._native.add_input(
            features=width,
            hidden=0 if second is None else self.config.d_input,
            mean=self._plain(layer.mean),
            scale=self._plain(layer.scale),
            linear=self._pair(linear, rounded=True),
            norm=self._pair(norm),
            second=self._pair(second, rounded=True),
            second_norm=self._pair(second_norm),
        )

    def _add_layer(self, layer: Any, coupling: Tensor) -> None:
        self._native.add_layer(
            norm=self._pair(layer.norm),
            in_proj=self._plain(layer.in_proj.weight, rounded=True),
            conv_weight=self._plain(layer.conv_weight),
            conv_bias=self._plain(layer.conv_bias),
            x_proj=self._plain(layer.x_proj.weight, rounded=True),
            dt_proj=self._pair(layer.dt_proj, rounded=True),
            A=self._plain(-torch.exp(layer.A_log.detach().float())),
            D=self._plain(layer.D),
            out_proj=self._plain(layer.out_proj.weight, rounded=True),
            coupling=self._plain(coupling),
        )

    def _plain(self, parameter: Tensor, *, rounded: bool = False) -> int:
        """The address of an fp32, contiguous copy, its values rounded to the program's dtype if asked."""
        tensor = parameter.detach().to(self.dtype if rounded else torch.float32).to(torch.float32).contiguous()
        self._held.append(tensor)
        return tensor.data_ptr()

    def _pair(self, module: Any, *, rounded: bool = False) -> list[int]:
        return NONE if module is None else [self._plain(module.weight, rounded=rounded), self._plain(module.bias)]

    @property
    def weight_bytes(self) -> int:
        """Bytes of the packed weights."""
        return self._native.weight_bytes

    def state_tensors(self) -> Mapping[str, StateTensor]:
        """The state of a slot, as the reference lays it out."""
        return self._tensors

    def split(self, outputs: Tensor) -> dict[str, Tensor]:
        """Name the head's columns: [r, outputs] -> {output: [r, width]}, width 1 squeezed."""
        return self._split(outputs)

    def run(self, chunk: Chunk, state: State) -> Tensor:
        """Advance each sequence of `chunk` from and into its slot -> [r, outputs], the head after each read row.

        With `chunk.alone`, [r, 2 * outputs]: then the head over that row by itself.
        A read before a sequence's first input of any modality gives NaN. Raises ValueError, before anything is
        written, where shapes disagree or offsets, slots or reads are out of range.
        """
        rows = check_features(chunk, self.config.modalities)
        inputs = [chunk.inputs[name].contiguous() for name in self.config.modalities]
        present = chunk.present.contiguous()
        slots = check_state(self._tensors, state, self.device)
        packing, held = chunk_packing(chunk, rows, slots)
        with allocating():  # all that a step needs beside its workspace
            outputs = torch.empty(chunk.reads.shape[0], 2 * self._width if chunk.alone else self._width)
        self._native.run(
            packing,
            [values.data_ptr() for values in inputs],
            present.data_ptr(),
            *(state[name].data_ptr() for name in ("conv", "ssm", "started", "pool_max", "pool_sum", "pool_count")),
            chunk.alone,
            outputs.data_ptr(),
            self.threads,
        )
        del held
        return outputs
