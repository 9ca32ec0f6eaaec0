"""Edges: their scores, what they read and write, and running circuits of them."""
