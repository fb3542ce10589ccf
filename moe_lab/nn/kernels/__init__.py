"""What backends compute with, in JAX."""
