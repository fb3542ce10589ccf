"""A served model under load: requests from this process to `moe-lab serve` in another, and what they waited for.

Nothing here imports jax: the device belongs to the server.
"""
