"""Traces: what was measured of a drafter, and what follows from it on paper. NumPy only."""
