"""Benchmarks: `python -m benchmarks.engine`. See README.md beside this file."""
