"""Expert modules and trunks as things one can store: interface, widths, cost, and their shape in the registry."""
