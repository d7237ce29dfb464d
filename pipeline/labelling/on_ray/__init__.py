"""The workers as Ray actors, and the cluster that they run on."""
