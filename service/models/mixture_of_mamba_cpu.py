"""Mixture-of-Mamba as one compiled call a step: weights packed once, workspace allocated at the start."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, cast

import torch
from torch import Tensor

from service.kernels.cpu import BEST, THREADS, _native
from service.models.base import State, StateTensor, TokenChunk, check_state
from service.models.cpu_packing import chunk_packing
from service.models.memory import allocating
from service.models.mixture_of_mamba import MixtureOfMamba

BLOCK_ROWS = 512  # rows that the workspace holds; a longer chunk runs in blocks of so many, with the same bits


class MixtureOfMambaProgram:
    """The executable of a `MixtureOfMamba` for the backend `cpu`. The state is that of the reference, slot for slot.

    dtype float32, or bfloat16: weights of the projections, the embedding and the head, and what they multiply, are
    rounded to bf16; sums, the convolution, the scan and the state stay fp32.
    threads: most threads of a step; a small step takes fewer. Their number changes no bit.
    isa: one of `service.kernels.cpu.INSTRUCTION_SETS`.
    Not for two threads at a time: the workspace is one.
    """

    same_bits = True

    def __init__(
        self,
        model: MixtureOfMamba,
        *,
        dtype: torch.dtype = torch.float32,
        threads: int | None = None,
        isa: str = BEST,
        block_rows: int = BLOCK_ROWS,
    ) -> None:
        self.config, self.vocabulary, self.dtype = model.config, model.vocabulary, dtype
        self.isa, self.threads = isa, threads or THREADS
        self.device = torch.device("cpu")
        self._tensors, self._ids = model.state_tensors(), model.vocabulary.size
        c = model.config
        ends = {
            "embedding": _plain(model.embedding),
            "norm_f": _plain(model.norm_f),
            "borders": model.get_buffer("borders").contiguous(),
        }
        if not c.tied:
            ends["head"] = _plain(model.head)
        self._native = _native.Mixture(
            d_model=c.d_model,
            d_inner=c.d_inner,
            d_state=c.d_state,
            d_conv=c.d_conv,
            dt_rank=c.dt_rank,
            vocabulary=self._ids,
            modalities=len(model.vocabulary.modalities),
            eps=c.eps,
            dtype=str(dtype).removeprefix("torch."),
            isa=isa,
            block_rows=block_rows,
            **({"head": 0} | {name: tensor.data_ptr() for name, tensor in ends.items()}),
        )
        for layer in model.blocks.layers:
            self._add_layer(cast(Any, layer))

    def _add_layer(self, layer: Any) -> None:
        names = ("norm", "in_proj", "conv_weight", "conv_bias", "x_proj", "dt_proj", "D", "out_proj")
        tensors = {name: _plain(getattr(layer, name)) for name in names}
        tensors["A"] = -torch.exp(_plain(layer.A_log))
        if layer.dt_bias is not None:
            tensors["dt_bias"] = _plain(layer.dt_bias)
        copies = {f"{name}_copies": tensors[f"{name}_proj"].shape[0] for name in ("in", "x", "dt", "out")}
        self._native.add_layer(
            **({"dt_bias": 0} | {name: tensor.data_ptr() for name, tensor in tensors.items()} | copies)
        )

    @property
    def weight_bytes(self) -> int:
        """Bytes of the packed weights."""
        return self._native.weight_bytes

    def state_tensors(self) -> Mapping[str, StateTensor]:
        """The convolution's windows and the states of the scan, as the reference lays them out."""
        return self._tensors

    # Few kinds of calls: weights have evicted the code of Python and PyTorch, and the first call of a kind fetches it.
    def run(self, chunk: TokenChunk, state: State) -> Tensor:
        """Advance each sequence by its tokens, mutating its rows of `state` -> logits at `reads` [r, vocabulary].

        Raises ValueError, before anything is written, for tokens, offsets, slots or reads out of range.
        """
        tokens = chunk.tokens.contiguous()
        if tokens.dtype != torch.int64 or len(tokens.shape) != 1:
            raise ValueError(f"tokens: [t] int64, got {list(tokens.shape)} {tokens.dtype}")
        slots = check_state(self._tensors, state, self.device)
        packing, held = chunk_packing(chunk, tokens.shape[0], slots)
        with allocating():  # all that a step needs beside its workspace
            logits = torch.empty(chunk.reads.shape[0], self._ids)
        self._native.run(
            packing,
            tokens.data_ptr(),
            state["conv"].data_ptr(),
            state["ssm"].data_ptr(),
            logits.data_ptr(),
            self.threads,
        )
        del held
        return logits


def _plain(parameter: Tensor) -> Tensor:
    """fp32, contiguous, without a graph."""
    return parameter.detach().to(torch.float32).contiguous()
