"""From committed units to a dataset: thresholds, tags, shards, ledger, and the swap to a new generation."""
