"""Sweeps: objectives x seeds x settings as ordinary runs of one folder, trained, evaluated and compared."""
