"""Harvesting: activations computed once, kept in shards, read in shuffled batches."""
