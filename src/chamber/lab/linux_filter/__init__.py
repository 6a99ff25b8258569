"""A policy in front of a stock Linux kernel: what a guest runs before it probes anything."""
