"""Formats of coders on disk: microtome's own and those of other packages, both ways."""
