"""Misalignment scores for the sentences of documents; independent of Ray, storage and training."""
