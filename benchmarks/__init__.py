"""Benchmarks: run by one command, never asserted in a test."""
