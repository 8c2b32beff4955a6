"""Trainers: one distillation step, its setup, checkpoints, logs and publication."""
