"""Parts that all objectives share: sums and terms, weights, schedules, layers, temperatures."""
