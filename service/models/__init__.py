"""The models, and how their checkpoints are read. A model is a module over packed chunks of steps on slots."""
