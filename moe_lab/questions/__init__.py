"""Routers for whole questions on anyone's outcome tables: the table and its checks, features, heads, evaluation."""
