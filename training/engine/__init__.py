"""DeepSpeed: its configuration, training steps, checkpoints loaded without running code, ZeRO, timing."""
