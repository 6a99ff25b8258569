"""Coverage-guided search for new attacks on the same targets."""
