"""Models in the format that others load: from the end of a run or any of its checkpoints, with a card."""
