"""Search: path frequencies of a trace -> candidate trees in order. NumPy only."""
