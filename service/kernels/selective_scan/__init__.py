"""The selective state-space recurrence of Mamba over packed sequences, in and out of slots."""

from service.kernels.selective_scan.reference import selective_scan

__all__ = ["selective_scan"]
