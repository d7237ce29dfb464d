"""Export models as Hugging Face folders with a model card, from a finished run or any of its checkpoints."""
