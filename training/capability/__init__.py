"""Measure what a model can do on tasks of the lm-evaluation-harness (extra `lm-eval`)."""
