"""Benchmarks: `gpuprop bench`, or `python -m benchmarks`. See README.md beside this file."""
