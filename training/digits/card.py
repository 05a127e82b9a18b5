"""The model card of digits-trio, and the card entries of its config, from the measured results."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from training.digits.chart import loss_chart
from training.digits.recipe import DENSE, MIXTURE

RESULTS = Path(__file__).parent / "results"
MEASURES, CURVES = "measures.json", "curves.json"
CHART = "loss.svg"

LICENCE = "Weights: CC BY-SA 4.0, by way of the Free Spoken Digit Dataset (CC BY-SA 4.0) and MNIST (CC BY-SA 3.0)"
DATA = "MNIST, 55,000 of the training images; Free Spoken Digit Dataset, 2,400 clips of six speakers (indices 10 to 49)"

TEMPLATE = Path(__file__).with_name("card_template.md")


def entries(results: Path = RESULTS) -> dict[str, Any]:
    """The card's entries of config.json; quality only where it has been measured."""
    card: dict[str, Any] = {
        "licence": LICENCE,
        "data": DATA,
        "intended_use": "Demonstration and tests of generation in text, images and speech.",
        "limits_of_use": "Ten digits, six voices, MNIST's handwriting; nothing else.",
    }
    path = results / MEASURES
    if path.exists():
        measures = json.loads(path.read_text("utf-8"))
        work = measures["at_temperature_1"]
        card["quality"] = {
            "settings": measures["settings"],
            "right": {name: row["right"] for name, row in work.items()},
        }
    return card


def write(out: Path, results: Path = RESULTS) -> None:
    """MODEL_CARD.md and the chart, into the checkpoint's folder."""
    measures = json.loads((results / MEASURES).read_text("utf-8"))
    curves = json.loads((results / CURVES).read_text("utf-8"))
    config = json.loads((out / "config.json").read_text("utf-8"))
    (out / CHART).write_text(chart(curves), "utf-8")
    (out / "MODEL_CARD.md").write_text(text(measures, curves, config, out), "utf-8")


def chart(curves: dict[str, Any]) -> str:
    """The losses of both kinds, over the steps that both have run."""
    last = min(curve[-1]["step"] for curve in (curves[MIXTURE], curves[DENSE]))
    panels = {
        modality: {
            kind: [(row["step"], row[f"{modality}_loss"]) for row in curves[kind] if row["step"] <= last]
            for kind in (MIXTURE, DENSE)
        }
        for modality in ("text", "image", "speech")
    }
    return loss_chart(panels, 3 * curves["flops_per_token"] * curves["tokens_per_step"])


def comparison(curves: dict[str, Any]) -> str:
    """Both kinds' losses at the last step that both have run, and the steps the mixture needed for the dense one's."""
    last = min(curve[-1]["step"] for curve in (curves[MIXTURE], curves[DENSE]))
    at = {kind: next(row for row in curves[kind] if row["step"] == last) for kind in (MIXTURE, DENSE)}
    rows = []
    for modality in ("text", "image", "speech"):
        reached = next(
            row["step"] for row in curves[MIXTURE] if row[f"{modality}_loss"] <= at[DENSE][f"{modality}_loss"]
        )
        mixture, dense = (at[kind][f"{modality}_loss"] for kind in (MIXTURE, DENSE))
        rows.append(f"| {modality} | {mixture:.3f} | {dense:.3f} | {reached:,} ({reached / last:.0%}) |")
    return "\n".join(
        [
            "The same width, depth, data and order of data, one seed each, with every projection unsplit: as many",
            "parameters act on a token, and a step costs as many FLOPs. Held-back loss a token after",
            f"{last:,} steps, before any decay of the rate:",
            "",
            "| | Mixture-of-Mamba | dense | steps after which the mixture was as good |",
            "|---|---|---|---|",
            *rows,
        ]
    )


def text(measures: dict[str, Any], curves: dict[str, Any], config: dict[str, Any], out: Path) -> str:
    """The card."""
    warm, cold = measures["at_temperature_1"], measures["at_temperature_0"]
    table = [
        f"| {name} | {row['right']:.3f} | {' to '.join(f'{end:.3f}' for end in row['interval'])} "
        f"| {cold[name]['right']:.2f} |"
        for name, row in warm.items()
    ]
    images, clips = measures["variety"]["images"], measures["variety"]["speech"]
    near, near_clip = images["nearest_training_image"], clips["nearest_training_clip"]
    words, mixed = (warm[f"sums, {kind}, answered freely"] for kind in ("in words", "mixed"))
    return TEMPLATE.read_text("utf-8").format(
        parameters=curves["parameters"],
        megabytes=sum(path.stat().st_size for path in out.rglob("*") if path.suffix in (".safetensors", ".json")) / 1e6,
        **{name: measures["settings"][name] for name in ("temperature", "samples", "seed")},
        guidance=measures["settings"]["guidance_scale"],
        image_judge=measures["judges"]["image"],
        speech_judge=measures["judges"]["speech"],
        work="\n".join(table),
        sum_text=words["text"]["right"],
        mixed_text=mixed["text"]["right"],
        sum_image=words["image"]["right"],
        sum_speech=words["speech"]["right"],
        mixed_image=mixed["image"]["right"],
        mixed_speech=mixed["speech"]["right"],
        images=images["generated"],
        clips=clips["generated"],
        image_variety=images["classifier_on_real"],
        speech_variety=clips["classifier_on_real"],
        distinct_images=images["distinct"],
        distinct_clips=clips["distinct"],
        image_near=near["generated"]["percentiles"]["50"],
        image_near_real=near["held_back"]["percentiles"]["50"],
        image_near_1=near["generated"]["percentiles"]["1"],
        image_near_real_1=near["held_back"]["percentiles"]["1"],
        clip_near=near_clip["generated"]["median"],
        clip_near_real=near_clip["held_back"]["median"],
        clip_near_5=near_clip["generated"]["p5"],
        clip_near_real_5=near_clip["held_back"]["p5"],
        comparison=comparison(curves),
        tokens=f"{curves['tokens_per_step'] * curves[MIXTURE][-1]['step'] / 1e6:.0f} million",
        steps=curves[MIXTURE][-1]["step"],
        decay=curves["decay_steps"],
        again=curves["again_steps"],
        licence=config["licence"],
        data=config["data"],
    )
