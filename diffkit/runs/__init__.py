"""Runs: train, sample, evaluate and report into a run directory. Importing this package imports no torch."""
