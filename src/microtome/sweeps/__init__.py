"""Sweeps: plans of many interventions, their cost, certification and execution."""
