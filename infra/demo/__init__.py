"""The whole road on one machine, with real text that every machine has."""
