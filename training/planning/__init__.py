"""What a run will take, computed before step 0: memory, time, epochs, on this machine or another."""
