"""From a raw corpus to a labelled dataset."""
