"""What backends compute with, in JAX. May import: errors, config and of `moe_lab.nn` pool and activations."""
