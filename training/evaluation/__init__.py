"""From a model to what it says: samples, their scores, and how well it predicts text that it has not seen."""
