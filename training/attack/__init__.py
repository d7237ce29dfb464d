"""Attack models: measure how easily their preference is undone."""
