"""Train a language model on a labelled dataset, evaluate it, and compare runs."""
