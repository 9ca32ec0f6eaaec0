"""Judging circuits: cutting, evaluation, knock-outs, nulls, variation, the whole protocol."""
