"""Write a labelled dataset for others: in the format of the paper's datasets, or as text that any trainer reads."""
