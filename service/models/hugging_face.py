"""Mamba as Hugging Face keeps it (`MambaForCausalLM`): config.json, safetensors in one file or in shards, tokenizer."""

from __future__ import annotations

import functools
import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer
from torch import Tensor

from service.codecs.text import TOKENIZER_FILE, TextCodec
from service.models.files import json_object, read_config, read_tensors, tensor_problems, value_problems
from service.models.mixture_of_mamba import MixtureOfMamba
from service.models.mixture_of_mamba_config import MixtureOfMambaConfig
from service.models.mixture_of_mamba_release import layer_shapes, layer_state
from service.models.vocabulary import TEXT, Vocabulary

WEIGHTS = "model.safetensors"
INDEX = "model.safetensors.index.json"
EMBEDDING, NORM, HEAD = "backbone.embeddings.weight", "backbone.norm_f.weight", "lm_head.weight"
MIXER = "mixer"
# What each option must be, where a config states it: our model is this one.
ONLY: Mapping[str, tuple[Any, ...]] = {
    "model_type": ("mamba",),
    "hidden_act": ("silu", "swish"),
    "use_bias": (False,),
    "quantization_config": (None,),
}


def mamba_from_hugging_face(folder: Path) -> tuple[MixtureOfMamba, torch.dtype]:
    """The folder's model, in fp32 and as one of one modality, and the dtype that its file holds.

    eos is that of generation_config.json, else of config.json (the first, where there are several). bos is what the
    folder's tokenizer puts before a text, which need not be what the configs name. Raises ValueError saying what is
    missing, wrong or not supported.
    """
    values, config = read_config(folder, lambda values: (values, _config(values)))
    tensors, tied = _tensors(folder), config.tied
    if tied and HEAD in tensors and EMBEDDING in tensors:
        if not torch.equal(tensors[HEAD], tensors[EMBEDDING]):
            raise ValueError(f"{folder}: tie_word_embeddings is set, and {HEAD} differs from {EMBEDDING}")
        del tensors[HEAD]
    vocabulary = _vocabulary(folder, values)
    expected, zeros = _shapes(config, vocabulary.size), dict[str, Tensor]()
    if not values.get("use_conv_bias", True):
        biases = [name for name in expected if name.endswith(".conv1d.bias")]
        zeros = {name: torch.zeros(expected.pop(name)) for name in biases}
    if problems := tensor_problems(tensors, expected) + value_problems(tensors):
        raise ValueError(f"the weights in {folder} do not match its config:\n  " + "\n  ".join(problems))
    dtype = functools.reduce(torch.promote_types, {tensor.dtype for tensor in tensors.values()})
    with torch.device("meta"):
        model = MixtureOfMamba(config, vocabulary).eval().requires_grad_(False)
    model.borders = vocabulary.borders()
    model.load_state_dict(
        _renamed({name: tensor.float() for name, tensor in (tensors | zeros).items()}, config), assign=True
    )
    return model, dtype


def _config(values: Mapping[str, Any]) -> MixtureOfMambaConfig:
    for name, choices in ONLY.items():
        if values.get(name, choices[0] if name != "model_type" else None) not in choices:
            raise ValueError(f"{name}: only {' or '.join(map(repr, choices))} is supported, got {values.get(name)!r}")
    names = {"d_model": "hidden_size", "n_layers": "num_hidden_layers", "d_state": "state_size"}
    if missing := [name for name in (*names.values(), "vocab_size") if name not in values]:
        raise ValueError(f"missing entries {missing}")
    sizes = {ours: values[theirs] for ours, theirs in names.items()}
    rank, width = values.get("time_step_rank", "auto"), values["hidden_size"]
    try:
        inner = values.get("intermediate_size", int(values.get("expand", 2) * width))
        return MixtureOfMambaConfig(
            **sizes,
            d_conv=values.get("conv_kernel", 4),
            dt_rank=math.ceil(width / 16) if rank == "auto" else rank,
            d_inner=inner,
            split=(),
            tied=values.get("tie_word_embeddings", True),
            eps=values.get("layer_norm_epsilon", 1e-5),
        )
    except TypeError as error:
        raise ValueError(f"sizes are numbers: {error}") from None


def _vocabulary(folder: Path, values: Mapping[str, Any]) -> Vocabulary:
    size, given = values["vocab_size"], dict(values)
    path = folder / "generation_config.json"
    if path.exists():
        given |= _json(path)
    eos: Any = given.get("eos_token_id")
    eos = eos[0] if isinstance(eos, list) and eos else eos
    tokenizer = folder / TOKENIZER_FILE
    bos = _begin(tokenizer) if tokenizer.exists() else None
    try:
        vocabulary = Vocabulary({TEXT: size}, bos, eos)
    except ValueError as error:
        raise ValueError(f"{folder}: {error}") from None
    if tokenizer.exists() and (count := TextCodec.load(tokenizer).size) > size:
        raise ValueError(f"{tokenizer} has {count} ids, and the model's vocab_size is {size}")
    return vocabulary


def _begin(path: Path) -> int | None:
    """The id that a tokenizer puts before a text, if it does."""
    TextCodec.load(path)  # says what is wrong with the file
    tokenizer = Tokenizer.from_str(path.read_text("utf-8"))
    with_specials, plain = tokenizer.encode("a").ids, tokenizer.encode("a", add_special_tokens=False).ids
    if with_specials == plain:
        return None
    if with_specials[1:] != plain:
        raise ValueError(f"{path} makes {with_specials} of a text that is {plain}; one id before it is supported")
    return int(with_specials[0])


def _tensors(folder: Path) -> dict[str, Tensor]:
    """The tensors of the one file or of all shards, `backbone.embedding.` of old files under its new name."""
    if (folder / WEIGHTS).exists() or not (folder / INDEX).exists():
        tensors = read_tensors(folder / WEIGHTS)
    else:
        shards = json_object("weight_map", _json(folder / INDEX).get("weight_map"))
        tensors = {}
        for file in sorted(set(shards.values()), key=str):
            if not isinstance(file, str) or Path(file).name != file:
                raise ValueError(f"{folder / INDEX}: weight_map names files of the folder, got {file!r}")
            tensors |= read_tensors(folder / file)
        if missing := sorted(set(shards) - set(tensors)):
            raise ValueError(f"{folder / INDEX} names tensors that its files lack: {', '.join(missing)}")
    return {name.replace("backbone.embedding.", "backbone.embeddings."): tensor for name, tensor in tensors.items()}


def _json(path: Path) -> Mapping[str, Any]:
    try:
        return json_object("content", json.loads(path.read_text("utf-8")))
    except OSError as error:
        raise ValueError(f"cannot read {path}: {error.strerror or error}") from None
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path}: {error}") from None


def _shapes(c: MixtureOfMambaConfig, size: int) -> dict[str, tuple[int, ...]]:
    shapes: dict[str, tuple[int, ...]] = {EMBEDDING: (size, c.d_model), NORM: (c.d_model,)}
    if not c.tied:
        shapes[HEAD] = (size, c.d_model)
    layer = layer_shapes(c, MIXER, 1)
    return shapes | {f"backbone.layers.{i}.{name}": shape for i in range(c.n_layers) for name, shape in layer.items()}


def _renamed(tensors: Mapping[str, Tensor], c: MixtureOfMambaConfig) -> dict[str, Tensor]:
    ours = {"embedding": tensors[EMBEDDING].clone(), "norm_f": tensors[NORM].clone()}
    if not c.tied:
        ours["head"] = tensors[HEAD].clone()
    for index in range(c.n_layers):
        state = layer_state(tensors, f"backbone.layers.{index}", MIXER, c, 1)
        ours |= {f"blocks.layers.{index}.{name}": tensor for name, tensor in state.items()}
    return ours
