"""Benchmarks: what Chamber costs, beside what it is compared with, in one run."""
