"""From a labelled dataset to batches: tokenizer, token store, virtual stream, order."""
