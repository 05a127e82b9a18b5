"""Ray's own warnings on import are not ours to mend."""

from __future__ import annotations

import warnings
from contextlib import suppress

with warnings.catch_warnings(), suppress(ModuleNotFoundError):
    warnings.simplefilter("ignore")
    import ray.serve  # noqa: F401
