"""Tuning of a recipe: trials of both arms, their confirmation on fresh seeds, and a report."""
