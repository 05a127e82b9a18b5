"""Figures of the GPU backend, each beside the least time that the device's own copies or exponentials would take."""
