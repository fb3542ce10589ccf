"""Ways to compute the routed layer, all equal in value and in every gradient: see `expert_ffn`.

May import: errors, config and the rest of `moe_lab.nn` below it (pool, activations).
"""
