"""Neural classifiers of sentences: one place decides what the network gets at once."""
