"""The trunk, the expert pool and the routed layer, in Flax NNX and plain functions."""
