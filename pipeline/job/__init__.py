"""What a labelling job has on disk: its record, plan, units, epochs and status."""
