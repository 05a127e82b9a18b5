from __future__ import annotations

import json
import re
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
from service.models.convert import convert
from service.models.expand import AddedMedium, expanded
from service.models.generative_checkpoint import GenerativeCheckpoint, load_generative
from service.models.vocabulary import Medium, Vocabulary
from service.runtime import Runtime
from tests.generative import generative_model
from tests.models.hugging_face import VOCABULARY, logits_of, random_mamba, save_mamba
from tests.models.tokens import greedy, stepwise
from tests.tokenizer import TEXT_IDS, write_tokenizer

TOKENS = torch.randint(0, VOCABULARY, (40,), generator=torch.Generator().manual_seed(3)).tolist()
MEDIA = {"image": AddedMedium(9, (4, 4)), "speech": AddedMedium(6, (1, 5))}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return save_mamba(random_mamba(), tmp_path / "hf")


def _converted(folder: Path, **options: Any) -> GenerativeCheckpoint:
    out = folder.parent / "out"
    convert("hf-mamba", folder, out, **options)
    return load_generative(out)


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
    ours = _converted(save_mamba(theirs, tmp_path / "hf")).model
    expected = logits_of(theirs, TOKENS)
    assert expected.abs().max() > 1
    torch.testing.assert_close(ours(torch.tensor(TOKENS), torch.tensor([0, 40])), expected, rtol=0, atol=1e-4)
    torch.testing.assert_close(stepwise(ours, TOKENS), expected, rtol=0, atol=1e-4)


def test_greedy_generation_is_that_of_transformers_token_by_token(folder: Path) -> None:
    theirs, ours = random_mamba(), _converted(folder).model
    prompt = torch.tensor([TOKENS[:9]])
    answer = theirs.generate(
        prompt, attention_mask=torch.ones_like(prompt), max_new_tokens=48, do_sample=False, eos_token_id=None
    )
    expected = answer[0, 9:].tolist()
    assert len(set(expected)) > 8
    assert greedy(ours, TOKENS[:9], 48) == expected


def test_the_engine_answers_as_transformers_generates(folder: Path, start_runtime: Callable[..., Runtime]) -> None:
    theirs = random_mamba()
    runtime = start_runtime(_converted(folder).folder)
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
    checkpoint = _converted(save_mamba(theirs, tmp_path / "hf"))
    assert checkpoint.dtype == dtype
    assert {tensor.dtype for tensor in load_file(checkpoint.folder / "model.safetensors").values()} == {dtype}
    expected = logits_of(theirs.float(), TOKENS)  # their weights, rounded, and fp32 arithmetic
    torch.testing.assert_close(stepwise(checkpoint.model, TOKENS), expected, rtol=0, atol=1e-4)


def test_a_file_of_two_dtypes_loses_nothing(folder: Path) -> None:
    tensors = load_file(folder / "model.safetensors")
    mixed = {name: tensor if name.endswith("A_log") else tensor.bfloat16() for name, tensor in tensors.items()}
    save_file(mixed, folder / "model.safetensors")
    checkpoint = _converted(folder)
    assert checkpoint.dtype == torch.float32
    layer = checkpoint.model.blocks.layers[0]
    assert torch.equal(layer.A_log, tensors["backbone.layers.0.mixer.A_log"].T)


def test_shards_are_read(tmp_path: Path) -> None:
    theirs = random_mamba()
    folder = save_mamba(theirs, tmp_path / "hf", max_shard_size="20KB")
    assert len(list(folder.glob("*.safetensors"))) > 2
    torch.testing.assert_close(stepwise(_converted(folder).model, TOKENS), logits_of(theirs, TOKENS), rtol=0, atol=1e-4)
    index = json.loads((folder / "model.safetensors.index.json").read_text())
    index["weight_map"]["backbone.extra"] = next(iter(index["weight_map"].values()))
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    assert "names tensors that its files lack: backbone.extra" in _refused(folder)
    for file in ("../model.safetensors", 3):
        index["weight_map"]["backbone.extra"] = file
        (folder / "model.safetensors.index.json").write_text(json.dumps(index))
        assert "names files of the folder" in _refused(folder)


def test_the_tokenizer_goes_along(tmp_path: Path) -> None:
    folder = save_mamba(random_mamba(vocab_size=TEXT_IDS + 3), tmp_path / "hf")  # some ids are padding
    write_tokenizer(folder / "tokenizer.json", "<|endoftext|>")
    checkpoint = _converted(folder)
    assert checkpoint.config.codecs == {"text": {"file": "tokenizer.json"}}
    codec = TextCodec.load(checkpoint.folder / "tokenizer.json")
    tokens = codec.encode("three plus four is")
    assert b"".join(map(codec.bytes_of, tokens)) == b"three plus four is"
    assert (checkpoint.config.vocabulary.bos, checkpoint.config.vocabulary.eos) == (None, 7)
    assert checkpoint.config.vocabulary.sizes["text"] == TEXT_IDS + 3


def test_without_a_tokenizer_ids_go_in_and_out(folder: Path) -> None:
    config = _converted(folder).config
    assert config.codecs == {}
    assert (config.vocabulary.bos, config.vocabulary.eos, config.name) == (None, 7, "out")


def test_bos_is_what_the_tokenizer_begins_a_text_with(tmp_path: Path) -> None:
    folder = save_mamba(random_mamba(vocab_size=TEXT_IDS + 2), tmp_path / "hf")
    path = write_tokenizer(folder / "tokenizer.json", "<s>", "</s>")
    tokenizer = Tokenizer.from_file(str(path))
    tokenizer.post_processor = TemplateProcessing(single="<s> $A", special_tokens=[("<s>", TEXT_IDS)])
    tokenizer.save(str(path))
    assert _converted(folder).config.vocabulary.bos == TEXT_IDS
    ends = [("<s>", TEXT_IDS), ("</s>", TEXT_IDS + 1)]
    tokenizer.post_processor = TemplateProcessing(single="<s> $A </s>", special_tokens=ends)
    tokenizer.save(str(path))
    assert "one id before it is supported" in _refused(folder)


@pytest.mark.parametrize(("given", "eos"), [(5, 5), ([6, 7], 6), (None, None)])
def test_eos_is_that_of_the_generation_config(folder: Path, given: object, eos: int | None) -> None:
    (folder / "generation_config.json").write_text(json.dumps({"eos_token_id": given, "bos_token_id": 3}))
    assert _converted(folder).config.vocabulary.eos == eos
    (folder / "generation_config.json").unlink()
    assert _converted(folder).config.vocabulary.eos == 7


def _refused(folder: Path) -> str:
    out = folder.parent / "refused"
    with pytest.raises(ValueError, match=re.escape(str(folder))) as error:
        convert("hf-mamba", folder, out)
    assert not out.exists()
    return str(error.value)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"model_type": "falcon_mamba"}, "model_type: only 'mamba' is supported, got 'falcon_mamba'"),
        ({"model_type": None}, "model_type: only 'mamba' is supported"),
        ({"use_bias": True}, "use_bias: only False is supported, got True"),
        ({"hidden_act": "gelu"}, "hidden_act: only 'silu' or 'swish' is supported, got 'gelu'"),
        ({"quantization_config": {"bits": 4}}, "quantization_config: only None is supported"),
        ({"hidden_size": "24"}, "model.d_model: an integer"),
        ({"hidden_size": None}, "sizes are numbers"),
        ({"state_size": 0}, "model.d_state: "),
        ({"layer_norm_epsilon": "tiny"}, "model.eps: "),
        ({"tie_word_embeddings": "yes"}, "model.tied: "),
        ({"vocab_size": -1}, "vocabulary.sizes: "),
        ({"vocab_size": 62}, r"backbone.embeddings.weight has shape [61, 24], expected [62, 24]"),
        ({"num_hidden_layers": 4}, "missing backbone.layers.3.mixer.A_log [48, 5]"),
        ({"num_hidden_layers": 2}, "unexpected backbone.layers.2.norm.weight [24]"),
        ({"tie_word_embeddings": False}, "missing lm_head.weight [61, 24]"),
        ({"use_conv_bias": False}, "unexpected backbone.layers.0.mixer.conv1d.bias [48]"),
        ({"eos_token_id": 61}, "sentinels are ids of the text"),
    ],
)
def test_what_is_not_supported_or_does_not_match_is_said(folder: Path, change: dict[str, Any], message: str) -> None:
    (folder / "generation_config.json").unlink()
    values = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(values | change))
    assert message in _refused(folder)


def test_missing_sizes_are_listed(folder: Path) -> None:
    values = json.loads((folder / "config.json").read_text())
    del values["state_size"], values["vocab_size"]
    (folder / "config.json").write_text(json.dumps(values))
    assert "missing entries ['state_size', 'vocab_size']" in _refused(folder)


def _edit(folder: Path, change: Callable[[dict[str, Tensor]], object]) -> None:
    tensors = load_file(folder / "model.safetensors")
    change(tensors)
    save_file(tensors, folder / "model.safetensors")


def test_every_fault_of_the_tensors_is_listed(folder: Path) -> None:
    def spoil(tensors: dict[str, Tensor]) -> None:
        del tensors["backbone.layers.1.mixer.D"]
        tensors["backbone.layers.0.mixer.in_proj.bias"] = torch.zeros(96)
        tensors["backbone.norm_f.weight"] = torch.zeros(25)
        tensors["backbone.layers.0.mixer.A_log"][0, 0] = torch.nan
        tensors["backbone.layers.2.norm.weight"] = torch.ones(24, dtype=torch.float64)

    _edit(folder, spoil)
    message = _refused(folder)
    assert "missing backbone.layers.1.mixer.D [48]" in message
    assert "unexpected backbone.layers.0.mixer.in_proj.bias [96]" in message
    assert "backbone.norm_f.weight has shape [25], expected [24]" in message
    assert "backbone.layers.0.mixer.A_log has values that are not finite" in message
    assert "backbone.layers.2.norm.weight is torch.float64" in message


def test_a_head_in_the_file_of_a_tied_model_must_be_its_embedding(folder: Path) -> None:
    _edit(folder, lambda tensors: tensors.update({"lm_head.weight": tensors["backbone.embeddings.weight"].clone()}))
    assert _converted(folder).config.model.tied
    _edit(folder, lambda tensors: tensors["lm_head.weight"].mul_(2))
    assert "lm_head.weight differs from backbone.embeddings.weight" in _refused(folder)


def test_the_embedding_under_its_old_name_is_read(folder: Path) -> None:
    def rename(tensors: dict[str, Tensor]) -> None:
        tensors["backbone.embedding.weight"] = tensors.pop("backbone.embeddings.weight")

    _edit(folder, rename)
    assert torch.equal(_converted(folder).model.embedding, random_mamba().backbone.embeddings.weight)


@pytest.mark.parametrize("name", ["config.json", "model.safetensors"])
def test_an_absent_file_is_named(folder: Path, name: str) -> None:
    (folder / name).unlink()
    assert str(folder / name) in _refused(folder)


def test_a_tokenizer_that_does_not_fit_is_refused(folder: Path) -> None:
    write_tokenizer(folder / "tokenizer.json")
    assert f"has {TEXT_IDS} ids, and the model's vocab_size is 61" in _refused(folder)
    (folder / "tokenizer.json").write_text("{}")
    assert "tokenizer.json is not a tokenizer" in _refused(folder)


@pytest.mark.parametrize("name", ["generation_config.json", "model.safetensors.index.json"])
@pytest.mark.parametrize("text", ["[1]", "{", "[" * 100_000])
def test_a_broken_json_file_is_named(folder: Path, name: str, text: str) -> None:
    if "index" in name:
        (folder / "model.safetensors").unlink()
    (folder / name).write_text(text)
    assert str(folder / name) in _refused(folder)


def test_a_folder_is_not_converted_onto_itself(folder: Path) -> None:
    before = (folder / "config.json").read_bytes()
    with pytest.raises(ValueError, match="is the folder to convert"):
        convert("hf-mamba", folder, folder / ".." / "hf")
    assert (folder / "config.json").read_bytes() == before


def test_modalities_are_added_to_no_other_source(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="modalities are added to hf-mamba, not to coupled-mamba-release"):
        convert("coupled-mamba-release", tmp_path, tmp_path / "out", MEDIA)


@pytest.mark.parametrize("options", [{}, {"tie_word_embeddings": False}], ids=["tied", "untied"])
def test_three_modalities_begin_as_the_dense_model(tmp_path: Path, options: dict[str, Any]) -> None:
    theirs = random_mamba(**options)
    checkpoint = _converted(save_mamba(theirs, tmp_path / "hf"), media=MEDIA)
    model, vocabulary = checkpoint.model, checkpoint.config.vocabulary
    assert dict(vocabulary.sizes) == {"text": 65, "image": 9, "speech": 6}
    assert vocabulary.media == {"image": Medium(61, 62, (4, 4)), "speech": Medium(63, 64, (1, 5))}
    assert model.config.split == ("in_proj", "x_proj", "dt_proj", "out_proj")
    torch.testing.assert_close(stepwise(model, TOKENS)[:, :61], logits_of(theirs, TOKENS), rtol=0, atol=1e-4)
    for layer in model.blocks.layers:
        for name in ("in_proj", "x_proj", "dt_proj", "dt_bias", "out_proj"):
            first, *others = getattr(layer, name)
            assert len(others) == 2
            assert all(torch.equal(first, other) for other in others)
    for rows in [model.embedding[61:]] + ([] if model.config.tied else [model.head[61:]]):
        assert rows.shape == (19, 24)
        assert 0.01 < rows.std() < 0.03
        assert len(rows.unique(dim=0)) == 19


def test_the_copies_are_routed(tmp_path: Path) -> None:
    model = _converted(save_mamba(random_mamba(), tmp_path / "hf"), media=MEDIA).model
    tokens = [3, 61, 66, 67, 62, 63, 75, 64, 5]  # an image and a clip between text
    before = stepwise(model, tokens)
    model.blocks.layers[0].in_proj[1] *= 1.5
    after = stepwise(model, tokens)
    assert torch.equal(after[:2], before[:2])
    assert (after[2:] - before[2:]).abs().amax(1).min() > 0


def test_new_rows_are_the_same_every_time_and_differ_by_seed() -> None:
    dense = generative_model(vocabulary=Vocabulary({"text": 9}), split=[])
    one, same, other = (expanded(dense, MEDIA, seed) for seed in (0, 0, 1))
    assert torch.equal(one.embedding, same.embedding)
    assert not torch.equal(one.embedding[9:], other.embedding[9:])
    assert torch.equal(one.embedding[:9], dense.embedding)
    one.blocks.layers[0].A_log.zero_()  # nothing is shared with the dense model, not even what is no copy
    assert bool(dense.blocks.layers[0].A_log.any())


def test_a_model_that_is_not_dense_is_not_expanded() -> None:
    for model in (generative_model(), generative_model(vocabulary=Vocabulary({"text": 9}))):
        with pytest.raises(ValueError, match="a dense model of text is expected"):
            expanded(model, MEDIA)
