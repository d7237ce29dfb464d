"""Maintain labelled datasets: repair damage, remove unneeded files."""
