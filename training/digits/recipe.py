"""The sizes of digits-trio and of the dense Mamba that it is compared with, and how each is trained."""

from __future__ import annotations

from dataclasses import replace

import torch

from service.models.mixture_of_mamba import MixtureOfMamba
from service.models.mixture_of_mamba_config import PROJECTIONS, MixtureOfMambaConfig
from service.models.vocabulary import Vocabulary
from training.digits.fit import FitSettings

MIXTURE, DENSE = "mixture", "dense"
SPLITS = {MIXTURE: PROJECTIONS, DENSE: ()}

SEED = 0
D_CONV = 8  # the window reaches the code above, a row of seven codes back
SETTINGS = FitSettings()
# The dense model is there to be compared while the rate is constant, and no further.
SETTINGS_OF = {MIXTURE: SETTINGS, DENSE: replace(SETTINGS, stop=400)}
GUIDANCE = 2.5  # of the checkpoint where a request says nothing, and of every figure in its card
TEMPERATURE = 0.7  # of the checkpoint where a request says nothing; the card's figures are at 1 and 0


def build(kind: str, vocabulary: Vocabulary, seed: int) -> MixtureOfMamba:
    """A model before training. `dense` has every projection unsplit: as many parameters act on a token, fewer exist."""
    torch.manual_seed(seed)
    return MixtureOfMamba(MixtureOfMambaConfig(d_model=128, n_layers=4, d_conv=D_CONV, split=SPLITS[kind]), vocabulary)


def flops_per_token(config: MixtureOfMambaConfig, vocabulary: int) -> int:
    """Multiplications and additions of a token's forward pass: projections, convolution, scan and head."""
    c = config
    projections = 2 * c.d_inner * c.d_model + (c.dt_rank + 2 * c.d_state) * c.d_inner + c.d_inner * c.dt_rank
    projections += c.d_inner * c.d_model
    scan = 4 * c.d_state * c.d_inner  # decay, drive, update, read-out: a multiplication and an addition each at most
    return 2 * (c.n_layers * (projections + c.d_conv * c.d_inner + scan) + vocabulary * c.d_model)
