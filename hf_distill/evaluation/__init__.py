"""Evaluation of finished models: metrics, statistics, latency, generation, curves."""
