"""The recipe of the digits specimen."""
