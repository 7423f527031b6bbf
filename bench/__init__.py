"""Measurements. Every number is appended, with what it was measured on, to a file under `bench/results/`."""
