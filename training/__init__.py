"""From a labelled dataset to a language model, its evaluation and a comparison."""
