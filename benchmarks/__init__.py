"""Measurements: each command prints a table and writes a JSON record to ``benchmarks/records``."""
