"""Checkpoints of other code, made into ours: `serpentine convert --from SOURCE PATH OUT`."""

from __future__ import annotations

import re
import shutil
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor

from service.codecs.text import TOKENIZER_FILE
from service.models.checkpoint import Calibration, CheckpointConfig, save_checkpoint
from service.models.coupled_mamba import CoupledMamba
from service.models.coupled_mamba_config import CoupledMambaConfig
from service.models.expand import AddedMedium, expanded
from service.models.files import read_tensors, tensor_problems
from service.models.generative_checkpoint import GenerativeConfig, SamplingDefaults, save_generative
from service.models.hugging_face import mamba_from_hugging_face
from service.models.vocabulary import TEXT

COUPLED_MAMBA, HUGGING_FACE_MAMBA = SOURCES = ("coupled-mamba-release", "hf-mamba")

# Our modality -> the names that the released code gives to it, and the index of its branch.
RELEASE_NAMES = {"text": ("text", "text", 2), "audio": ("audio", "audio", 0), "video": ("vision", "visual", 1)}
# The released dense layer of a modality reads the two others in this order.
RELEASE_OTHERS = {"text": ("audio", "video"), "audio": ("video", "text"), "video": ("audio", "text")}


def convert(
    source: str, path: Path, out: Path, media: Mapping[str, AddedMedium] | None = None
) -> CheckpointConfig | GenerativeConfig:
    """Convert the checkpoint at `path` into the folder `out`.

    source "coupled-mamba-release": the authors' code of Coupled Mamba, either published layout (weights shared by the
    modalities, or one branch each), .safetensors or .pth (read with weights_only). Sizes come from the tensors.
    source "hf-mamba": a folder of Hugging Face's MambaForCausalLM. With `media` the model has these modalities beside
    text, its projections copied, to start training from.
    Raises ValueError that lists what is missing or wrong.
    """
    if source not in SOURCES:
        raise ValueError(f"unknown source {source!r}; known are {', '.join(SOURCES)}")
    if source == HUGGING_FACE_MAMBA:
        return _convert_hugging_face(path, out, media or {})
    if media:
        raise ValueError(f"modalities are added to {HUGGING_FACE_MAMBA}, not to {source}")
    return _convert_coupled_mamba(path, out)


def _convert_hugging_face(folder: Path, out: Path, media: Mapping[str, AddedMedium]) -> GenerativeConfig:
    if out.resolve() == folder.resolve():
        raise ValueError(f"{out} is the folder to convert; name another")
    model, dtype = mamba_from_hugging_face(folder)
    if media:
        model = expanded(model, media)
    tokenizer = folder / TOKENIZER_FILE
    config = GenerativeConfig(
        name=out.name,
        version="1",
        model=model.config,
        vocabulary=model.vocabulary,
        codecs={TEXT: {"file": TOKENIZER_FILE}} if tokenizer.exists() else {},
        generation=SamplingDefaults.from_json({}, model.vocabulary.modalities),
    )
    save_generative(out, config, model, dtype)
    if tokenizer.exists():
        shutil.copyfile(tokenizer, out / TOKENIZER_FILE)
    return config


def _convert_coupled_mamba(path: Path, out: Path) -> CheckpointConfig:
    tensors = _read(path)
    model = coupled_mamba_from_release(tensors)
    config = CheckpointConfig(
        name=out.name,
        version="1",
        model=model.config,
        features={"clock": {"kind": "aligned"}, "modalities": {m: {"recipe": None} for m in RELEASE_NAMES}},
        scale=(-3.0, 3.0),
        labels=("negative", "neutral", "positive"),
        emotions=(),
        calibration=Calibration(),
        card={},
    )
    save_checkpoint(out, config, model, torch.float32)
    return config


def coupled_mamba_from_release(tensors: Mapping[str, Tensor]) -> CoupledMamba:
    """The released model's tensors as a CoupledMamba of coupling `layers`. Raises ValueError listing what is wrong."""
    branched = any(name.startswith("mamba_branches.") for name in tensors)
    config = _release_config(tensors, branched)
    expected = _release_shapes(config, branched)
    given = {name: tensor for name, tensor in tensors.items() if name in expected or not _unused(name, branched)}
    if problems := tensor_problems(given, expected):
        raise ValueError("not a released Coupled Mamba of either layout:\n  " + "\n  ".join(problems))
    model = CoupledMamba(config).eval().requires_grad_(False)
    model.load_state_dict(_renamed({name: tensor.float() for name, tensor in given.items()}, config, branched))
    return model


def _read(path: Path) -> dict[str, Tensor]:
    if path.suffix == ".safetensors":
        return read_tensors(path)
    try:
        values = torch.load(path, map_location="cpu", weights_only=True)
    except OSError as error:
        raise ValueError(f"cannot read {path}: {error.strerror or error}") from None
    except Exception:  # a malformed file makes torch.load raise anything; what it says is how to run what is in there
        raise ValueError(
            f"{path} is not a checkpoint of tensors alone (weights_only): it is damaged, not of torch.save, or "
            "it has objects in it, which are never loaded; .safetensors files are read too"
        ) from None
    for wrapper in ("state_dict", "model_state_dict", "model"):
        if isinstance(values, dict) and isinstance(values.get(wrapper), dict):
            values = values[wrapper]
    if not isinstance(values, dict) or not all(isinstance(k, str) and isinstance(v, Tensor) for k, v in values.items()):
        raise ValueError(f"{path} holds no dictionary of tensors")
    return {name.removeprefix("module."): tensor for name, tensor in values.items()}


def _prefixes(branched: bool) -> tuple[str, str]:
    return ("projection", "regression_head") if branched else ("linear", "regression")


def _layer(branched: bool, modality: str, layer: int) -> str:
    return f"mamba_branches.{RELEASE_NAMES[modality][2]}.{layer}" if branched else f"layers.{layer}"


def _release_config(tensors: Mapping[str, Tensor], branched: bool) -> CoupledMambaConfig:
    projection, head = _prefixes(branched)
    pattern = re.compile(r"mamba_branches\.0\.(\d+)\." if branched else r"layers\.(\d+)\.")
    layers = {int(found[1]) for name in tensors if (found := pattern.match(name))}
    first = _layer(branched, "audio", 0)
    try:
        inner, n = tensors[f"{first}.mixer.A_log"].shape
        d_model = tensors[f"{first}.norm.weight"].shape[0]
        widths = {m: tensors[f"{names[0]}_{projection}.fc.0.weight"].shape for m, names in RELEASE_NAMES.items()}
        return CoupledMambaConfig(
            modalities={modality: shape[1] for modality, shape in widths.items()},
            d_model=d_model,
            n_layers=max(layers) + 1,
            d_state=n,
            d_conv=tensors[f"{first}.mixer.conv1d.weight"].shape[2],
            expand=inner // d_model,
            dt_rank=tensors[f"{first}.mixer.dt_proj.weight"].shape[1],
            coupling="layers",
            input="mlp",
            d_input=widths["text"][0],
            pool=("max",),
            modality_weights="softmax" if branched else "ratio",
            d_head=tensors[f"{head}.dense.weight"].shape[0],
            outputs={"sentiment": tensors[f"{head}.out_proj.weight"].shape[0]},
        )
    except KeyError as error:
        raise ValueError(f"not a released Coupled Mamba of either layout: missing {error.args[0]}") from None
    except (ValueError, IndexError, ZeroDivisionError) as error:
        raise ValueError(f"not a released Coupled Mamba of either layout: {error}") from None


def _release_shapes(c: CoupledMambaConfig, branched: bool) -> dict[str, tuple[int, ...]]:
    """Every tensor of the layout that the model uses."""
    projection, head = _prefixes(branched)
    d, inner, shapes = c.d_model, c.d_inner, dict[str, tuple[int, ...]]()
    for modality, (name, weight, _) in RELEASE_NAMES.items():
        fc = f"{name}_{projection}.fc"
        shapes |= {f"{fc}.0.weight": (c.d_input, c.modalities[modality]), f"{fc}.3.weight": (d, c.d_input)}
        shapes |= {f"{fc}.{i}.bias": (size,) for i, size in ((0, c.d_input), (1, c.d_input), (3, d), (4, d))}
        shapes |= {f"{fc}.1.weight": (c.d_input,), f"{fc}.4.weight": (d,)}
        shapes |= {f"resnet_{name}.dense.weight": (d, 2 * d), f"resnet_{name}.dense.bias": (d,)}
        shapes[f"weight_{weight}" if branched else f"weight_{weight}_inner"] = (1,)
        for layer in range(c.n_layers):
            at = _layer(branched, modality, layer)
            shapes |= {f"{at}.norm.weight": (d,), f"{at}.norm.bias": (d,)}
            mixer = {
                "in_proj.weight": (2 * inner, d),
                "conv1d.weight": (inner, 1, c.d_conv),
                "conv1d.bias": (inner,),
                "x_proj.weight": (c.dt_rank + 2 * c.d_state, inner),
                "dt_proj.weight": (inner, c.dt_rank),
                "dt_proj.bias": (inner,),
                "A_log": (inner, c.d_state),
                "D": (inner,),
                "out_proj.weight": (d, inner),
            }
            shapes |= {f"{at}.mixer.{name}": shape for name, shape in mixer.items()}
    outputs = c.outputs["sentiment"]
    shapes |= {f"{head}.dense.weight": (c.d_head, d), f"{head}.dense.bias": (c.d_head,)}
    shapes |= {f"{head}.out_proj.weight": (outputs, c.d_head), f"{head}.out_proj.bias": (outputs,)}
    return shapes | {"norm_f.weight": (d,), "norm_f.bias": (d,)}


def _unused(name: str, branched: bool) -> bool:
    """Tensors that the released files hold and the released forward pass never reads."""
    if name.startswith("resnet_") and ".out_proj." in name:
        return True
    return re.fullmatch(r"weight_(audio|visual|text)(_inner)?", name) is not None


def _renamed(tensors: Mapping[str, Tensor], c: CoupledMambaConfig, branched: bool) -> dict[str, Tensor]:
    """The released tensors under our names, the modalities' weights stacked."""
    projection, head = _prefixes(branched)
    modalities, d = list(c.modalities), c.d_model
    ours: dict[str, Tensor] = {}
    for modality in modalities:
        name = RELEASE_NAMES[modality][0]
        ours[f"inputs.{modality}.mean"] = torch.zeros(c.modalities[modality])
        ours[f"inputs.{modality}.scale"] = torch.ones(c.modalities[modality])
        for i in (0, 1, 3, 4):
            for kind in ("weight", "bias"):
                ours[f"inputs.{modality}.project.{i}.{kind}"] = tensors[f"{name}_{projection}.fc.{i}.{kind}"]
    for layer in range(c.n_layers):

        def stacked(name: str, layer: int = layer) -> Tensor:
            return torch.stack([tensors[f"{_layer(branched, m, layer)}.{name}"] for m in modalities])

        at = f"layers.{layer}"
        for plain in ("in_proj.weight", "x_proj.weight", "dt_proj.weight", "dt_proj.bias", "out_proj.weight", "D"):
            ours[f"{at}.{plain}"] = stacked(f"mixer.{plain}")
        ours |= {f"{at}.norm.{kind}": stacked(f"norm.{kind}") for kind in ("weight", "bias")}
        ours[f"{at}.conv_weight"] = stacked("mixer.conv1d.weight").squeeze(2).transpose(1, 2).contiguous()
        ours[f"{at}.conv_bias"] = stacked("mixer.conv1d.bias")
        ours[f"{at}.A_log"] = stacked("mixer.A_log").transpose(1, 2).contiguous()
    for kind in ("weight", "bias"):
        ours[f"norm_f.{kind}"] = tensors[f"norm_f.{kind}"].expand(len(modalities), -1).contiguous()
        ours[f"head.dense.{kind}"] = tensors[f"{head}.dense.{kind}"]
        ours[f"head.out_proj.{kind}"] = tensors[f"{head}.out_proj.{kind}"]
    cross = torch.zeros(len(modalities), d, len(modalities) * d)
    for row, modality in enumerate(modalities):
        dense = tensors[f"resnet_{RELEASE_NAMES[modality][0]}.dense.weight"]
        for block, other in enumerate(RELEASE_OTHERS[modality]):
            column = modalities.index(other) * d
            cross[row, :, column : column + d] = dense[:, block * d : (block + 1) * d]
    ours["cross.weight"] = cross
    ours["cross.bias"] = torch.stack([tensors[f"resnet_{RELEASE_NAMES[m][0]}.dense.bias"] for m in modalities])
    suffix = "" if branched else "_inner"
    ours["head.weights"] = torch.cat([tensors[f"weight_{RELEASE_NAMES[m][1]}{suffix}"] for m in modalities])
    return ours
