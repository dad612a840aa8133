"""Ratios against named baselines; `python -m benchmarks --help`."""
