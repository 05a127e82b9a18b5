"""Mixture-of-Mamba on a GPU: four kernels a layer, and one graph of them for each size of a batch that decodes."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor

from service.kernels.routed_linear.triton import project
from service.kernels.triton.advance import advance
from service.kernels.triton.embedding import embed
from service.kernels.triton.routing import Tiles, empty_tiles, most_tiles, route_rows, stacked_tiles
from service.kernels.triton.select import (
    SelectWorkspace,
    Sequences,
    convolve_and_select,
    select_workspace,
)
from service.kernels.triton.tiles import product_tile
from service.models.base import State, StateTensor, TokenChunk, check_state
from service.models.mixture_of_mamba import MixtureOfMamba
from service.models.mixture_of_mamba_config import PROJECTIONS
from service.models.triton_graphs import MOST_STEPS, StepBuckets
from service.models.triton_packing import blocks_of, check_chunk, kernel_device, send

BLOCK_ROWS = 1024  # rows that the workspace holds; a longer chunk runs in blocks of so many, with the same bits


@dataclass(frozen=True)
class _Layer:
    norm: Tensor
    in_proj: Tensor
    conv_weight: Tensor
    conv_bias: Tensor
    x_proj: Tensor
    dt_proj: Tensor
    dt_bias: Tensor
    A: Tensor
    D: Tensor
    out_proj: Tensor


@dataclass(frozen=True)
class _Workspace:
    """Rows of a block: e [t, d_model], uz [t, 2 D], x, dt, y [t, D], selected [t, R + 2 N], route [t]."""

    e: Tensor
    uz: Tensor
    x: Tensor
    selected: Tensor
    dt: Tensor
    y: Tensor
    route: Tensor
    tiles: Tiles
    select: SelectWorkspace


class MixtureOfMambaTriton:
    """The executable of a `MixtureOfMamba` for the backend `triton`. The state is that of the reference, on a GPU.

    dtype float32, or bfloat16: weights of the projections, the embedding and the head, and what they multiply, are
    rounded to bf16; sums, the convolution, the scan and the state stay fp32.
    graphs: whether steps of decoding are captured and replayed, as they are on a GPU where nothing is said
    Not for two threads at a time: the workspace is one.
    """

    same_bits = True

    def __init__(
        self,
        model: MixtureOfMamba,
        *,
        dtype: torch.dtype = torch.float32,
        graphs: bool | None = None,
        block_rows: int = BLOCK_ROWS,
        device: torch.device | None = None,
    ) -> None:
        self.config, self.vocabulary, self.dtype = model.config, model.vocabulary, dtype
        self.device, self.block_rows = device or kernel_device(), block_rows
        self._tensors = model.state_tensors()
        c = model.config
        self._embedding = self._weight(model.embedding)
        self._head = self._embedding if c.tied else self._weight(model.head)
        self._norm_f = self._plain(model.norm_f)
        self._borders = model.get_buffer("borders").to(self.device)
        self._layers = [self._packed(cast(Any, layer)) for layer in model.blocks.layers]
        self._tile = product_tile(2 * c.d_inner, c.d_model, dtype)
        self._out_tile = product_tile(c.d_model, c.d_inner, dtype)
        self._head_tile = product_tile(model.vocabulary.size, c.d_model, dtype)
        self._work = self._workspace(block_rows)
        capture = self.device.type == "cuda" if graphs is None else graphs
        self.buckets = StepBuckets(self._steps, self.vocabulary.size, self.device, capture)

    def _plain(self, parameter: Tensor) -> Tensor:
        return parameter.detach().to(self.device, torch.float32).contiguous()

    def _weight(self, parameter: Tensor) -> Tensor:
        return parameter.detach().to(self.device, self.dtype).contiguous()

    def _packed(self, layer: Any) -> _Layer:
        dt_proj = self._weight(layer.dt_proj)
        copies, channels, _ = dt_proj.shape
        bias = torch.zeros(copies, channels) if layer.dt_bias is None else layer.dt_bias
        return _Layer(
            norm=self._plain(layer.norm),
            in_proj=self._weight(layer.in_proj),
            conv_weight=self._plain(layer.conv_weight),
            conv_bias=self._plain(layer.conv_bias),
            x_proj=self._weight(layer.x_proj),
            dt_proj=dt_proj,
            dt_bias=self._plain(bias),
            A=self._plain(-torch.exp(layer.A_log.detach().float())),
            D=self._plain(layer.D),
            out_proj=self._weight(layer.out_proj),
        )

    def _workspace(self, rows: int) -> _Workspace:
        c, device = self.config, self.device
        wide = c.dt_rank + 2 * c.d_state
        tiles = empty_tiles(rows, len(self.vocabulary.modalities), self._tile.rows, device)
        return _Workspace(
            e=torch.zeros(rows, c.d_model, device=device),  # the head reads rows of padding, too
            uz=torch.empty(rows, 2 * c.d_inner, device=device),
            x=torch.empty(rows, c.d_inner, device=device),
            selected=torch.empty(rows, wide, device=device),
            dt=torch.empty(rows, c.d_inner, device=device),
            y=torch.empty(rows, c.d_inner, dtype=self.dtype, device=device),
            route=torch.empty(rows, dtype=torch.int32, device=device),
            tiles=tiles,
            select=select_workspace(c.d_inner, wide, self.dtype, tiles),
        )

    @property
    def weight_bytes(self) -> int:
        """Bytes of the weights on the device."""
        ends = [self._embedding, self._norm_f] + ([] if self.config.tied else [self._head])
        tensors = ends + [tensor for layer in self._layers for tensor in vars(layer).values()]
        return sum(tensor.numel() * tensor.element_size() for tensor in tensors)

    @property
    def split_bytes(self) -> int:
        """Bytes of those weights that exist once a modality: a step reads its modalities' part of them."""
        tensors = [getattr(layer, name) for layer in self._layers for name in PROJECTIONS if name in self.config.split]
        if "dt_proj" in self.config.split:
            tensors.extend(layer.dt_bias for layer in self._layers)
        return sum(tensor.numel() * tensor.element_size() for tensor in tensors)

    def state_tensors(self) -> Mapping[str, StateTensor]:
        """The convolution's windows and the states of the scan, as the reference lays them out."""
        return self._tensors

    def run(self, chunk: TokenChunk, state: State) -> Tensor:
        """Advance each sequence by its tokens, mutating its rows of `state` -> logits at `reads` [r, vocabulary].

        The chunk and the logits are on the CPU, the state on `device`. Raises ValueError, before anything is written,
        for tokens, offsets, slots or reads out of range.
        """
        tokens = chunk.tokens
        if tokens.dtype != torch.int64 or tokens.dim() != 1:
            raise ValueError(f"tokens: [t] int64, got {list(tokens.shape)} {tokens.dtype}")
        if tokens.numel() and not 0 <= int(tokens.min()) <= int(tokens.max()) < self.vocabulary.size:
            raise ValueError(f"tokens: ids from 0 to {self.vocabulary.size - 1}, got {tokens.tolist()[:8]} …")
        slots, rows = check_state(self._tensors, state, self.device), tokens.shape[0]
        check_chunk("mixture_of_mamba", chunk, rows, slots)
        if 0 < rows <= MOST_STEPS and _all_steps(chunk, rows):
            return self.buckets.run(chunk, state)
        logits = torch.empty(chunk.reads.shape[0], self.vocabulary.size)
        for block in blocks_of(chunk, rows, self.block_rows):
            sequences = send(block, self.device)
            count = block.end - block.begin
            if sequences.count:
                self._layers_of(tokens[block.begin : block.end].to(self.device), sequences, state)
            read = (chunk.reads >= block.begin) & (chunk.reads < block.end)
            if count and bool(read.any()):
                e = self._work.e[(chunk.reads[read] - block.begin).to(self.device)]
                logits[read] = self._logits(e, torch.empty(e.shape[0], logits.shape[1], device=self.device)).cpu()
        return logits

    def _steps(self, tokens: Tensor, sequences: Sequences, state: State, logits: Tensor) -> None:
        """One step of each row, -1 for none, and the logits of all: what a graph holds."""
        self._layers_of(tokens, sequences, state)
        self._logits(self._work.e[: tokens.shape[0]], logits)

    def _layers_of(self, tokens: Tensor, sequences: Sequences, state: State) -> None:
        """Advance by tokens [t] and leave e [t, d_model] in the workspace. Everything is on the device."""
        c, rows = self.config, tokens.shape[0]
        work = self._work
        e, uz, x, selected, dt, y, route = (
            tensor[:rows] for tensor in (work.e, work.uz, work.x, work.selected, work.dt, work.y, work.route)
        )
        modalities = len(self.vocabulary.modalities)
        count = most_tiles(rows, modalities, self._tile.rows) if rows else 0
        tiles = Tiles(work.tiles.rows[:count], work.tiles.modality[:count])
        if rows:
            embed(tokens, self._embedding, self._borders, e, route)
            route_rows(route, rows, modalities, tiles)
        for index, layer in enumerate(self._layers):
            if rows:
                project(e, layer.in_proj, None, uz, tiles, self._tile, norm=layer.norm, eps=c.eps)
            convolve_and_select(
                uz,
                layer.conv_weight,
                layer.conv_bias,
                layer.x_proj,
                x,
                selected,
                window=state["conv"][:, index, 0],
                sequences=sequences,
                tiles=tiles,
                work=work.select,
            )
            advance(
                x,
                uz[:, c.d_inner :],
                selected,
                layer.dt_proj,
                layer.dt_bias,
                layer.A,
                layer.D,
                dt,
                y,
                state=state["ssm"][:, index],
                sequences=sequences,
                tiles=tiles,
            )
            if rows:
                project(y, layer.out_proj, None, e, tiles, self._out_tile, add=True)

    def _logits(self, e: Tensor, logits: Tensor) -> Tensor:
        """The head: e [r, d_model] -> logits [r, vocabulary], on the device."""
        tiles = stacked_tiles(e.shape[0], 1, self._head_tile.rows, self.device)
        project(e, self._head[None], None, logits, tiles, self._head_tile, norm=self._norm_f, eps=self.config.eps)
        return logits


def _all_steps(chunk: TokenChunk, rows: int) -> bool:
    """Whether each sequence has one row."""
    return rows == chunk.slots.shape[0] and bool((chunk.offsets == torch.arange(rows + 1)).all())
