"""Reference choices, curves, areas and intervals of routers on any outcome table. Pure numpy.
Papers' definitions by default; what public code does instead is in `published`."""
