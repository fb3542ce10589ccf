"""Expert modules: interface, widths, cost and weights, and the contract of a shrinking strategy."""
