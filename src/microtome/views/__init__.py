"""Typed values in, SVG and HTML out; knows no method and no model."""
