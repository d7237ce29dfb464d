"""Seal committed units into a dataset: thresholds, tags, shards, ledger, and the swap to a new generation."""
