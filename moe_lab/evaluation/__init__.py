"""Held-out evaluation: outcomes, passes, curves beside their baselines, bootstrap intervals and results."""
