"""Plan a run before step 0: its memory, time and epochs, on this machine or another."""
