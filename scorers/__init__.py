"""Misalignment scores for the sentences of documents; knows nothing of Ray, storage or training."""
