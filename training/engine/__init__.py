"""DeepSpeed behind a few verbs: its settings, its checkpoints read without running code, ZeRO, timing."""
