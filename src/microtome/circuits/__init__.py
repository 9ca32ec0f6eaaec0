"""Circuits: component scores, selection, evaluation and the verdict."""
