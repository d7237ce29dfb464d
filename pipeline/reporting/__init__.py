"""Write a page about the scores of a labelled dataset, on which thresholds can be tried."""
