"""Behaviors: clean/corrupt prompt pairs, generators, metrics, splits and loaders."""
