"""The network: model sizes, heads, vocabulary, sampling, and trials before a run."""
