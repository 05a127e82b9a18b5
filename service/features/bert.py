"""A BERT encoder (arXiv 1810.04805), as small as all-MiniLM-L6-v2 needs it.

transformers has one too; importing it takes four seconds, longer than everything else that a lone prediction
does. Module names follow the published checkpoints, so that their keys, and the paths of an adapter, are the
same in both. tests/features/test_bert.py compares the two.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, cast

from torch import Tensor, nn
from torch.nn import functional as F


@dataclass(frozen=True)
class BertConfig:
    """Sizes of an encoder, named as in a checkpoint's config.json."""

    vocab_size: int
    hidden_size: int
    num_hidden_layers: int
    num_attention_heads: int
    intermediate_size: int
    max_position_embeddings: int
    type_vocab_size: int
    layer_norm_eps: float

    @classmethod
    def from_json(cls, config: Mapping[str, Any]) -> BertConfig:
        """Read what the encoder needs; ValueError where the checkpoint is of another kind."""
        expected = {"model_type": "bert", "hidden_act": "gelu", "position_embedding_type": "absolute"}
        for key, value in expected.items():
            if config.get(key) != value:
                raise ValueError(f"the encoder's {key} must be {value!r}, got {config.get(key)!r}")
        return cls(**{name: config[name] for name in cls.__dataclass_fields__})


class BertEncoder(nn.Module):
    """Token ids to the last hidden states. No dropout, no pooling layer."""

    def __init__(self, config: BertConfig) -> None:
        super().__init__()
        self.embeddings = _Embeddings(config)
        self.encoder = nn.ModuleDict({"layer": nn.ModuleList(_Layer(config) for _ in range(config.num_hidden_layers))})

    def forward(self, ids: Tensor, mask: Tensor | None = None) -> Tensor:
        """ids [b, n] int64; mask [b, n] bool, False where a row is padded, or None -> [b, n, hidden_size]."""
        h = self.embeddings(ids)
        keys = None if mask is None else mask[:, None, None, :]  # [b, heads, queries, keys]
        for layer in cast(nn.ModuleList, self.encoder["layer"]):
            h = layer(h, keys)
        return cast(Tensor, h)


# Layers without initial values: on the meta device they take no memory, and drawing random numbers there would
# import PyTorch's compiler, a second and a half.
class _Linear(nn.Linear):
    def __init__(self, d_in: int, d_out: int) -> None:
        super().__init__(d_in, d_out, device="meta")

    def reset_parameters(self) -> None: ...


class _Embedding(nn.Embedding):
    def __init__(self, rows: int, dim: int) -> None:
        super().__init__(rows, dim, device="meta")

    def reset_parameters(self) -> None: ...


class _LayerNorm(nn.LayerNorm):
    def __init__(self, dim: int, eps: float) -> None:
        super().__init__(dim, eps, device="meta")

    def reset_parameters(self) -> None: ...


class _Embeddings(nn.Module):
    def __init__(self, config: BertConfig) -> None:
        super().__init__()
        self.word_embeddings = _Embedding(config.vocab_size, config.hidden_size)
        self.position_embeddings = _Embedding(config.max_position_embeddings, config.hidden_size)
        self.token_type_embeddings = _Embedding(config.type_vocab_size, config.hidden_size)
        self.LayerNorm = _LayerNorm(config.hidden_size, eps=config.layer_norm_eps)

    def forward(self, ids: Tensor) -> Tensor:
        kind = self.token_type_embeddings.weight[0]  # one sentence: all tokens are of type 0
        position = self.position_embeddings.weight[: ids.shape[1]]
        return cast(Tensor, self.LayerNorm(self.word_embeddings(ids) + kind + position))


class _Layer(nn.Module):
    def __init__(self, config: BertConfig) -> None:
        super().__init__()
        d = config.hidden_size
        self.heads = config.num_attention_heads
        self.attention = nn.ModuleDict(
            {
                "self": nn.ModuleDict({name: _Linear(d, d) for name in ("query", "key", "value")}),
                "output": _dense_norm(d, d, config.layer_norm_eps),
            }
        )
        self.intermediate = nn.ModuleDict({"dense": _Linear(d, config.intermediate_size)})
        self.output = _dense_norm(config.intermediate_size, d, config.layer_norm_eps)

    def forward(self, h: Tensor, keys: Tensor | None) -> Tensor:
        project, output = (cast(nn.ModuleDict, self.attention[name]) for name in ("self", "output"))
        query, key, value = (
            project[name](h).unflatten(-1, (self.heads, -1)).transpose(1, 2)  # [b, heads, n, d / heads]
            for name in ("query", "key", "value")
        )
        mixed = F.scaled_dot_product_attention(query, key, value, attn_mask=keys)
        h = output["LayerNorm"](h + output["dense"](mixed.transpose(1, 2).flatten(-2)))
        wide = F.gelu(self.intermediate["dense"](h))
        return cast(Tensor, self.output["LayerNorm"](h + self.output["dense"](wide)))


def _dense_norm(d_in: int, d_out: int, eps: float) -> nn.ModuleDict:
    return nn.ModuleDict({"dense": _Linear(d_in, d_out), "LayerNorm": _LayerNorm(d_out, eps=eps)})


def load_bert(config: Mapping[str, Any], weights: Mapping[str, Tensor]) -> BertEncoder:
    """An encoder in eval mode that holds `weights` as they are; ValueError lists missing and unexpected keys."""
    # Checkpoints carry a pooling layer, which nothing here reads, and older ones the positions 0, 1, 2 ...
    unused = {"embeddings.position_ids"}
    kept = {k: v for k, v in weights.items() if k not in unused and not k.startswith("pooler.")}
    model = BertEncoder(BertConfig.from_json(config))
    missing = sorted(model.state_dict().keys() - kept.keys())
    unexpected = sorted(kept.keys() - model.state_dict().keys())
    if missing or unexpected:
        raise ValueError(f"the encoder's weights lack {missing} and have unexpected {unexpected}")
    model.load_state_dict(kept, assign=True)
    return model.eval().requires_grad_(False)
