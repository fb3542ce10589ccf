"""What an artifact of each kind says in its manifest, and how its tensors are called: the one place that knows."""
