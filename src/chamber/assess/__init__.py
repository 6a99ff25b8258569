"""Scenario by target to verdict: the engine, the matrix, the reports."""
