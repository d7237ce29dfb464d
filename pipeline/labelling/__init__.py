"""From units to committed scores: the driver, its scheduler and workers, and the commit protocol."""
