"""Hypotheses about a circuit: written down, scrubbed, and tested by interchange."""
