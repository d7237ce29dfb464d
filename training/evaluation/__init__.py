"""Evaluate models: draw samples, score them, and measure how well the model predicts held-out text."""
