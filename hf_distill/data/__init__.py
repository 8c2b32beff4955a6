"""Training data: text for language models, augmented views, perturbed pairs, streams."""
