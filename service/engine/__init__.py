"""Requests in, batches of chunks on slots, results out. Knows models and no HTTP."""
