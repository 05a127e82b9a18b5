"""API keys: who may ask, and how much."""
