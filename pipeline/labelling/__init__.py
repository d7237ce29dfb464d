"""The labelling job: the driver with its scheduler and workers, and the commit protocol."""
