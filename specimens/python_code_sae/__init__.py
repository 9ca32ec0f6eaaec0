"""The recipe of the sparse autoencoders of the Python-code specimen."""
