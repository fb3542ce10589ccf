"""What the commands do: train, publish, check, shrink, compose, evaluate, run a study."""
