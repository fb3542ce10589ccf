"""A composition: trunk, modules, router and policy, resolved into a lockfile and loaded into one model."""
