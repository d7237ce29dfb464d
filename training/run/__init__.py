"""A training run: engine, loop, hooks, checkpoints, and the folder that it leaves behind."""
