"""One projection with a weight a modality: each row takes its own."""

from service.kernels.routed_linear.reference import routed_linear

__all__ = ["routed_linear"]
