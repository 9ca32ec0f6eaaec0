"""Circuits as pictures: one, a difference of two, a slider along growing sizes."""
