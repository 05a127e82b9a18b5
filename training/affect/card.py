"""MODEL_CARD.md, written from the results of the recipe: no figure in it is typed by hand."""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from training.affect.plot import risk_coverage_svg
from training.affect.study import ABLATIONS, ALONE

Figures = Mapping[str, Any]

LICENCE = (
    "CC BY-NC-SA 4.0, non-commercial: it is trained on RAVDESS (CC BY-NC-SA 4.0), CMU-MOSI and rt-polarity (research "
    "use) and MELD (GPL-3)"
)
DATA = [
    "CMU-MOSI train and dev: 1,513 utterances, text and sentiment (research use)",
    "Stanford Sentiment Treebank train: 8,544 sentences",
    "rt-polarity: snippets that do not resemble SST dev or test; text adapter only (research use)",
    "MELD train: 9,989 turns of dialogue, text (GPL-3)",
    "RAVDESS speech, actors 01-20: 1,200 clips, audio and OpenFace action units (CC BY-NC-SA 4.0)",
]
INTENDED = (
    "Research, teaching and trials of the service: the sentiment of short English utterances, and of acted speech like "
    "that of RAVDESS. People should see the answer as a guess, with its interval, and be able to disregard it."
)
LIMITS = (
    "It reads how something sounds and looks, not what a person feels. Trained on English, on film reviews and sitcom "
    "dialogue, and on 20 North American actors who acted each emotion in two fixed sentences: expect it to fail on "
    "other languages, dialects, ages and cultures, on spontaneous speech, irony and bad microphones; it has not been "
    "tested for bias between groups. Not for decisions about people: hiring, work, education, credit, insurance, "
    "policing, border control, medicine. The EU AI Act (Regulation 2024/1689, Article 5(1)(f)) prohibits inferring "
    "emotions of people at work and in education, but for medical or safety reasons; other emotion recognition is "
    "high-risk or has to be disclosed to those concerned."
)

FIGURE = Path(__file__).parents[2] / "docs" / "affect-small-risk-coverage.svg"

BARS = (
    ("text/mosi", "acc2", "≥", 0.84, "MOSI, text: Acc-2 (non-zero)"),
    ("text/mosi", "mae", "≤", 0.80, "MOSI, text: MAE"),
    ("text/mosi", "r", "≥", 0.76, "MOSI, text: r"),
    ("audio/ravdess", "label", "≥", 0.74, "RAVDESS, audio: three-way valence"),
    ("audio+video/ravdess", "label", "≥", 0.87, "RAVDESS, audio + action units: three-way valence"),
    ("audio+video/ravdess", "emotion", "≥", 0.73, "RAVDESS, audio + action units: eight emotions"),
)
VARIANTS = {
    "mean": "coupled, `mean` (shipped)",
    "learned": "coupled, `learned`",
    "none": "`none`: plain Mambas",
    "gru": "GRU of equal size",
}


def quality(figures: Mapping[str, Figures]) -> dict[str, Any]:
    """What config.json states: {evaluation: {figure: mean}} of the shipped variant, without ablations."""
    return {
        name: {figure: round(value["mean"], 4) for figure, value in entries.items()}
        for name, entries in figures.items()
        if not name.startswith((*ABLATIONS, ALONE))
    }


def entries(summary: Mapping[str, Mapping[str, Figures]]) -> dict[str, Any]:
    """The card's entries of config.json."""
    return {
        "licence": LICENCE,
        "data": DATA,
        "quality": {"protocol": "5-fold cross-validation by video and by actor, mean over seeds"}
        | quality(summary["mean"]),
        "intended_use": INTENDED,
        "limits_of_use": LIMITS,
    }


def spread(value: Figures | None) -> str:
    """`0.843 ± 0.004`; a dash where there is none; no interval for a lone seed."""
    if value is None:
        return "–"
    if len(value["values"]) < 2:
        return f"{value['mean']:.3f}"
    return f"{value['mean']:.3f} ± {value['half_width']:.3f}"


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A Markdown table."""
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def bars(summary: Mapping[str, Mapping[str, Figures]]) -> str:
    """Each bar, the shipped model's figure, the rivals', and whether the bar is met."""
    rows = []
    for name, figure, sign, bar, what in BARS:
        values = {v: summary[v].get(name, {}).get(figure) for v in VARIANTS if v in summary}
        mean = values["mean"]["mean"] if values["mean"] else float("nan")
        met = mean >= bar if sign == "≥" else mean <= bar
        rows.append([what, f"{sign} {bar:.2f}", "yes" if met else "**no**", *(spread(v) for v in values.values())])
    return table(["figure", "bar", "met", *(VARIANTS[v] for v in VARIANTS if v in summary)], rows)


def sampling_error(share: float, n: int) -> float:
    """The standard error of a share of `n` clips."""
    return math.sqrt(share * (1 - share) / n)


def seeds_of(summary: Mapping[str, Mapping[str, Figures]]) -> str:
    """`mean 5, gru 5, …`: how many seeds each variant's figures are of."""
    counts = []
    for variant, figures in summary.items():
        first = next(iter(figures.values()), None)
        counts.append(f"{variant} {len(next(iter(first.values()))['values']) if first else 0}")
    return ", ".join(counts)


def ablations(figures: Mapping[str, Figures]) -> str:
    """Every subset of modalities that was judged."""
    rows = []
    for name, values in figures.items():
        if name.startswith("missing-"):
            continue
        what, _, corpus = name.partition("/")
        if name.startswith("pair-"):
            _, kind, what = name.split("-", 2)
            corpus = f"MOSI sentence with a RAVDESS clip, {'of its polarity' if kind == 'agreeing' else 'neutral'}"
        elif name.startswith(ALONE):
            what = f"{what.removeprefix(ALONE)}, one member alone"
        rows.append([what, corpus, *(spread(values.get(f)) for f in ("acc2", "mae", "r", "label", "emotion"))])
    head = ["input", "corpus", "Acc-2", "MAE", "r", "three-way label", "eight emotions"]
    return table(head, rows)


def missing(summary: Mapping[str, Mapping[str, Figures]]) -> str:
    """Figures by the share of steps that are missing, first seed."""
    rows = []
    for rate in (0.0, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7):
        row = [f"{rate:.1f}"]
        for variant in (v for v in VARIANTS if v in summary):
            for corpus, full, figure in (
                ("mosi", "text/mosi", "acc2"),
                ("ravdess", "audio+video/ravdess", "label"),
                ("ravdess", "audio+video/ravdess", "emotion"),
            ):
                name = full if rate == 0 else f"missing-{rate}/{corpus}"
                value = summary[variant].get(name, {}).get(figure)
                row.append(f"{value['values'][0]:.3f}" if value else "–")
        rows.append(row)
    head = ["missing"]
    for variant in (v for v in VARIANTS if v in summary):
        head += [f"{variant}: MOSI Acc-2", f"{variant}: valence", f"{variant}: emotions"]
    return table(head, rows)


def intervals(measured: Figures) -> str:
    """The intervals of each subset and what they cover."""
    rows = [
        [
            subset,
            str(v["clips"]),
            f"{v['low']:+.2f} … {v['high']:+.2f}",
            f"{v['coverage']:.3f}",
            " ".join(f"{share:.2f}" for share in v["coverage_by_fold"]),
        ]
        for subset, v in measured["subsets"].items()
    ]
    return table(["input", "clips", "interval around the answer", "measured coverage", "by fold"], rows)


def selective(measured: Figures) -> str:
    """Accuracy with and without abstaining, and the error at several coverages."""
    rows = []
    for name, v in measured["label"]["by_subset"].items():
        curve = {round(p["coverage"], 2): p["risk"] for p in v["risk_coverage"]}
        answered = "–" if v["accuracy_answered"] is None else f"{v['accuracy_answered']:.3f}"
        points = [f"{curve[c]:.3f}" for c in (0.1, 0.2, 0.4, 0.6, 0.8, 1.0)]
        rows.append([name, f"{v['accuracy']:.3f}", f"{v['answered']:.3f}", answered, *points])
    head = ["input", "accuracy of all", "share answered", "accuracy of those answered"]
    return table([*head, *(f"error at {c}%" for c in (10, 20, 40, 60, 80, 100))], rows)


def heard(hears: Sequence[Sequence[str]]) -> str:
    """`1 hears text, audio, video; 2 hear text, audio`: what the members hear."""
    counts = Counter(", ".join(names) for names in hears)
    return "; ".join(f"{n} {'hears' if n == 1 else 'hear'} {names}" for names, n in counts.items())


def write(path: Path, results: Path, hears: Sequence[Sequence[str]]) -> None:
    """Fill the template with the results' JSON files. hears: the modalities of each member of the checkpoint."""
    found = {
        name: json.loads((results / f"{name}.json").read_text("utf-8"))
        for name in ("cv", "calibration", "tests", "floor")
    }
    adapter = json.loads((results / "adapter.json").read_text("utf-8"))
    last = adapter[-1]
    label = found["calibration"]["label"]
    sst, meld = found["tests"]["sst_test"], found["tests"]["meld_test"]
    cv, counted = found["cv"]["mean"], found["calibration"]["subsets"]
    sentences, clips = counted["text"]["clips"], counted["audio+video"]["clips"]
    curves = {name: entry["risk_coverage"] for name, entry in label["by_subset"].items()}
    FIGURE.parent.mkdir(exist_ok=True)
    FIGURE.write_text(risk_coverage_svg(curves), "utf-8")
    template = (Path(__file__).parent / "card.md").read_text("utf-8")
    path.write_text(
        template.format(
            licence=LICENCE,
            members=len(hears),
            heard=heard(hears),
            data="\n".join(f"- {line}." for line in DATA),
            intended=INTENDED,
            limits=LIMITS,
            bars=bars(found["cv"]),
            seeds=seeds_of(found["cv"]),
            sentences=f"{sentences:,}",
            clips=f"{clips:,}",
            error_text=f"{sampling_error(cv['text/mosi']['acc2']['mean'], sentences):.3f}",
            error_acted=f"{sampling_error(cv['audio+video/ravdess']['label']['mean'], clips):.3f}",
            ablations=ablations(cv),
            missing=missing(found["cv"]),
            intervals=intervals(found["calibration"]),
            coverage=found["calibration"]["coverage_aimed_at"],
            temperature=f"{label['temperature']:.2f}",
            before=f"{label['calibration_error_before']:.3f}",
            after=f"{label['calibration_error_after']:.3f}",
            threshold=f"{label['abstain_below']:.2f}",
            selective=selective(found["calibration"]),
            adapter_sst=f"{last['sst_dev_polarity_accuracy']:.3f}",
            adapter_r=f"{last['sst_dev_correlation']:.3f}",
            adapter_meld=f"{last['meld_dev_label_accuracy']:.3f}",
            ridge_acc2=f"{found['floor']['acc2']:.3f}",
            ridge_mae=f"{found['floor']['mae']:.3f}",
            ridge_r=f"{found['floor']['r']:.3f}",
            sst_polarity=f"{sst['polarity']:.3f}",
            sst_label=f"{sst['label']:.3f}",
            meld_label=f"{meld['label']:.3f}",
            meld_polarity=f"{meld['polarity']:.3f}",
        ),
        "utf-8",
    )
