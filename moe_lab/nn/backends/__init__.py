"""Ways to compute the routed layer, all equal in value and in every gradient: see `expert_ffn`."""
