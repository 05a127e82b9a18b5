"""Depthwise causal convolution over packed sequences, its window kept in a slot."""

from service.kernels.causal_conv1d.reference import causal_conv1d

__all__ = ["causal_conv1d"]
