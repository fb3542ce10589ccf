"""Routers: what they may choose from, what they see, what they return, and the outcome tables they learn from."""
