"""The coupled recurrence of Coupled Mamba over packed sequences, in and out of slots.

`reference` is the definition; `parallel` is the differentiable form that training uses.
"""

from service.kernels.coupled_scan.reference import coupled_scan

__all__ = ["coupled_scan"]
