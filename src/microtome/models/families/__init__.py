"""Tiny random models of transformers families, with every option of each family switched on."""
