"""A model on a TPU topology before there is one: its placement, the compiled step, the verdict, and what would help."""
