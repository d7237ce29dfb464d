"""The files of a labelling job: record, plan, units, epochs and status."""
