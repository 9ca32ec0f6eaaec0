"""Edges between latents and errors of attached codecs: what they are, run and scored."""
