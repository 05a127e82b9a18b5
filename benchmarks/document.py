"""`python -m benchmarks.document`: write the tables of README.md and docs/performance.md anew from the kept figures.

A table stands between `<!-- figures NAME FORM -->` and `<!-- end of figures -->`; NAME is that of
benchmarks/results/NAME.json, FORM one of `FORMS`. Tests hold the documents against it.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from benchmarks.bars import BARS, verdict
from benchmarks.efficiency.rows import load as load_efficiency
from benchmarks.figures import load, milliseconds, table

ROOT = Path(__file__).parent.parent
RESULTS = ROOT / "benchmarks" / "results"
DOCUMENTS = (ROOT / "README.md", ROOT / "docs" / "performance.md")
GENERATION, STRONGER = "generate/six of 130m/", "transformers, bare loop"
MARKED = re.compile(r"(<!-- figures (\S+) (\S+) -->\n).*?(<!-- end of figures -->)", re.DOTALL)


def full(path: Path) -> str:
    """All figures and the machine, as `make bench` prints them."""
    description, figures = load(path)
    machine = "\n".join(f"{name}: {value}" for name, value in description.items())
    return f"```\n{table(figures, verdict)}\n\n{machine}\n```\n"


def barred(path: Path) -> str:
    """Those that have a bar, as a table for a reader in a hurry."""
    description, figures = load(path)
    rows = ["| work | ours | rival | | ratio | bar |", "|---|---|---|---|---|---|"]
    for f in figures:
        if bar := BARS.get((f.work, f.peer_name)):
            fraction = f" ({f.floor_fraction:.2f} of the floor)" if bar.of_floor and f.floor_fraction else ""
            met = "" if verdict(f).endswith("yes") else ", not met"
            cells = (f.work, milliseconds(f.ours), milliseconds(f.peer), f.peer_name)
            rows.append(f"| {' | '.join(cells)} | {f.ratio:.1f}{fraction} | {bar.ratio:g}{met} |")
    return "\n".join([*rows, "", _measured(description), ""])


def generation(path: Path) -> str:
    """Tokens a second and first tokens through the whole engine, beside the stronger rival."""
    description, figures = load(path)
    rows = ["| work | ours | transformers | ratio |", "|---|---|---|---|"]
    for f in figures:
        if f.work.startswith(GENERATION) and f.peer_name == STRONGER:
            work = f.work.removeprefix(GENERATION)
            if f.unit:
                cells = (f"{f.unit}s a second, {work}", f"{1 / f.ours:,.0f}", f"{1 / f.peer:,.0f}")
            else:
                cells = (f"{work} tokens", milliseconds(f.ours), milliseconds(f.peer))
            rows.append(f"| {' | '.join(cells)} | {f.ratio:.1f} |")
    return "\n".join([*rows, "", _measured(description), ""])


def efficiency(path: Path) -> str:
    """Coupled Mamba and cross-attention over the length of a clip."""
    description, kept = load_efficiency(path)
    return f"{kept.table()}\n{_measured(description)}\n"


def _measured(description: Mapping[str, Any]) -> str:
    """On what and when, and what else ran there."""
    busy, cores = description["load_before"], description["cores"]
    others = f" Other work ran on its {cores} cores, a load of {busy:.0f}: the clock counts it." if busy > 1 else ""
    return f"({description['cpu']}, {description['date']}.{others})"


FORMS: Mapping[str, Callable[[Path], str]] = {
    "full": full,
    "barred": barred,
    "generation": generation,
    "efficiency": efficiency,
}


def drawing(name: str) -> Path:
    """Where the drawing of the kept rows NAME lies."""
    return ROOT / "docs" / f"{name}.svg"


def rewritten(text: str) -> str:
    """The document with its tables as the kept figures have them."""

    def replace(match: re.Match[str]) -> str:
        begin, name, form, end = match.groups()
        return begin + FORMS[form](RESULTS / f"{name}.json") + end

    return MARKED.sub(replace, text)


def main() -> None:
    """Rewrite both documents."""
    for path in DOCUMENTS:
        path.write_text(rewritten(path.read_text("utf-8")), "utf-8")


if __name__ == "__main__":
    main()
