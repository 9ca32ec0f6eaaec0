"""Small value types, protocols, statistics, seeds and hashes; knows no neural network."""
