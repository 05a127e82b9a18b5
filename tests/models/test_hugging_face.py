"""Hugging Face's Mambas, converted: the logits and answers of transformers, dtypes, shards, the tokenizer, its ends."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer
from tokenizers.processors import TemplateProcessing
from torch import Tensor

from service.codecs.prompt import TokensPart
from service.codecs.text import TextCodec
from service.engine.params import SamplingParams
from service.runtime import Runtime
from tests.models.files import edit
from tests.models.hugging_face import TOKENS, converted, logits_of, random_mamba, refused, save_mamba
from tests.models.tokens import greedy, stepwise
from tests.tokenizer import TEXT_IDS, write_tokenizer


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return save_mamba(random_mamba(), tmp_path / "hf")


OPTIONS: dict[str, dict[str, Any]] = {
    "tied": {},
    "untied": {"tie_word_embeddings": False},
    "no conv bias": {"use_conv_bias": False},
    "odd sizes": {"time_step_rank": 3, "expand": 3, "conv_kernel": 2, "layer_norm_epsilon": 1e-3},
    "swish": {"hidden_act": "swish"},
}


@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)
def test_logits_are_those_of_transformers_whole_and_step_by_step(tmp_path: Path, options: dict[str, Any]) -> None:
    theirs = random_mamba(**options)
    ours = converted(save_mamba(theirs, tmp_path / "hf")).model
    expected = logits_of(theirs, TOKENS)
    assert expected.abs().max() > 1
    torch.testing.assert_close(ours(torch.tensor(TOKENS), torch.tensor([0, 40])), expected, rtol=0, atol=1e-4)
    torch.testing.assert_close(stepwise(ours, TOKENS), expected, rtol=0, atol=1e-4)


def test_greedy_generation_is_that_of_transformers_token_by_token(folder: Path) -> None:
    theirs, ours = random_mamba(), converted(folder).model
    prompt = torch.tensor([TOKENS[:9]])
    answer = theirs.generate(
        prompt, attention_mask=torch.ones_like(prompt), max_new_tokens=48, do_sample=False, eos_token_id=None
    )
    expected = answer[0, 9:].tolist()
    assert len(set(expected)) > 8
    assert greedy(ours, TOKENS[:9], 48) == expected


def test_the_engine_answers_as_transformers_generates(folder: Path, start_runtime: Callable[..., Runtime]) -> None:
    theirs = random_mamba()
    runtime = start_runtime(converted(folder).folder)
    model = runtime.model(None, "generation")
    params = SamplingParams(
        temperature={"text": 0.0}, top_p={"text": 1.0}, top_k={"text": 0}, seed=0, mode="text-only", max_tokens=40
    )
    prompts = [TOKENS[:9], TOKENS[3:4], TOKENS[5:30]]
    answers = [
        runtime.generate(model, [TokensPart("text", prompt)], params, deadline=None, request_id=f"gen_{i}")
        for i, prompt in enumerate(prompts)
    ]
    ended = set()
    for prompt, answer in zip(prompts, answers, strict=True):
        ids = torch.tensor([prompt])
        expected = theirs.generate(
            ids, attention_mask=torch.ones_like(ids), max_new_tokens=40, do_sample=False, pad_token_id=0
        )
        (choice,) = answer.result(60).choices
        assert list(choice.tokens) == expected[0, len(prompt) :].tolist()
        ended.add(choice.finish_reason)
    assert ended == {"stop", "length"}  # eos came in some


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_the_dtype_of_the_file_is_kept(tmp_path: Path, dtype: torch.dtype) -> None:
    theirs = random_mamba().to(dtype)
    checkpoint = converted(save_mamba(theirs, tmp_path / "hf"))
    assert checkpoint.dtype == dtype
    assert {tensor.dtype for tensor in load_file(checkpoint.folder / "model.safetensors").values()} == {dtype}
    expected = logits_of(theirs.float(), TOKENS)  # their weights, rounded, and fp32 arithmetic
    torch.testing.assert_close(stepwise(checkpoint.model, TOKENS), expected, rtol=0, atol=1e-4)


def test_a_file_of_two_dtypes_loses_nothing(folder: Path) -> None:
    tensors = load_file(folder / "model.safetensors")
    mixed = {name: tensor if name.endswith("A_log") else tensor.bfloat16() for name, tensor in tensors.items()}
    save_file(mixed, folder / "model.safetensors")
    checkpoint = converted(folder)
    assert checkpoint.dtype == torch.float32
    layer = checkpoint.model.blocks.layers[0]
    assert torch.equal(layer.A_log, tensors["backbone.layers.0.mixer.A_log"].T)


def test_shards_are_read(tmp_path: Path) -> None:
    theirs = random_mamba()
    folder = save_mamba(theirs, tmp_path / "hf", max_shard_size="20KB")
    assert len(list(folder.glob("*.safetensors"))) > 2
    torch.testing.assert_close(stepwise(converted(folder).model, TOKENS), logits_of(theirs, TOKENS), rtol=0, atol=1e-4)
    index = json.loads((folder / "model.safetensors.index.json").read_text())
    index["weight_map"]["backbone.extra"] = next(iter(index["weight_map"].values()))
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    assert "names tensors that its files lack: backbone.extra" in refused(folder)
    for file in ("../model.safetensors", 3):
        index["weight_map"]["backbone.extra"] = file
        (folder / "model.safetensors.index.json").write_text(json.dumps(index))
        assert "names files of the folder" in refused(folder)


def test_the_embedding_under_its_old_name_is_read(folder: Path) -> None:
    def rename(tensors: dict[str, Tensor]) -> None:
        tensors["backbone.embedding.weight"] = tensors.pop("backbone.embeddings.weight")

    edit(folder, rename)
    assert torch.equal(converted(folder).model.embedding, random_mamba().backbone.embeddings.weight)


def test_the_tokenizer_goes_along(tmp_path: Path) -> None:
    folder = save_mamba(random_mamba(vocab_size=TEXT_IDS + 3), tmp_path / "hf")  # some ids are padding
    write_tokenizer(folder / "tokenizer.json", "<|endoftext|>")
    checkpoint = converted(folder)
    assert checkpoint.config.codecs == {"text": {"file": "tokenizer.json"}}
    codec = TextCodec.load(checkpoint.folder / "tokenizer.json")
    tokens = codec.encode("three plus four is")
    assert b"".join(map(codec.bytes_of, tokens)) == b"three plus four is"
    assert (checkpoint.config.vocabulary.bos, checkpoint.config.vocabulary.eos) == (None, 7)
    assert checkpoint.config.vocabulary.sizes["text"] == TEXT_IDS + 3


def test_without_a_tokenizer_ids_go_in_and_out(folder: Path) -> None:
    config = converted(folder).config
    assert config.codecs == {}
    assert (config.vocabulary.bos, config.vocabulary.eos, config.name) == (None, 7, "out")


def test_bos_is_what_the_tokenizer_begins_a_text_with(tmp_path: Path) -> None:
    folder = save_mamba(random_mamba(vocab_size=TEXT_IDS + 2), tmp_path / "hf")
    path = write_tokenizer(folder / "tokenizer.json", "<s>", "</s>")
    tokenizer = Tokenizer.from_file(str(path))
    tokenizer.post_processor = TemplateProcessing(single="<s> $A", special_tokens=[("<s>", TEXT_IDS)])
    tokenizer.save(str(path))
    assert converted(folder).config.vocabulary.bos == TEXT_IDS
    ends = [("<s>", TEXT_IDS), ("</s>", TEXT_IDS + 1)]
    tokenizer.post_processor = TemplateProcessing(single="<s> $A </s>", special_tokens=ends)
    tokenizer.save(str(path))
    assert "one id before it is supported" in refused(folder)


@pytest.mark.parametrize(("given", "eos"), [(5, 5), ([6, 7], 6), (None, None)])
def test_eos_is_that_of_the_generation_config(folder: Path, given: object, eos: int | None) -> None:
    (folder / "generation_config.json").write_text(json.dumps({"eos_token_id": given, "bos_token_id": 3}))
    assert converted(folder).config.vocabulary.eos == eos
    (folder / "generation_config.json").unlink()
    assert converted(folder).config.vocabulary.eos == 7
