"""Reference choices, curves, areas and intervals of routers on any outcome table. Pure numpy.
May import: errors, config. Papers' definitions by default; what public code does instead is in `published`."""
