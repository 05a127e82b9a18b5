"""Serpentine: serves multimodal state-space models."""

__version__ = "0.1.0"
