"""Held-out evaluation: outcomes, passes, curves beside their baselines, bootstrap intervals, results and report.

May import: errors, config, data, nn, experts, routing, compose.
"""
