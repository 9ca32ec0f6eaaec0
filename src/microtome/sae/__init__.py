"""Sparse coders: SAEs, transcoders, crosscoders; trained, evaluated, read, used in the model."""
