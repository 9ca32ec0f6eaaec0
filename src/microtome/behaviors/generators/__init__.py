"""Seeded generators of behaviors, one family of tasks a file."""
