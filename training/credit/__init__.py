"""Learn which tokens of a sentence its score is about, for scorers that cannot say where (`phf credit`)."""
