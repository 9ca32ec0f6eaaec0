"""The taxonomy: detectors of heads, neurons and motifs, each with its nulls, and the call."""
