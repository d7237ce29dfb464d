"""The demo: the whole workflow on one machine, with real text that every machine has."""
