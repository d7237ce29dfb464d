"""A training run from its settings to an exported model: the loop, its callbacks, saving, resuming."""
