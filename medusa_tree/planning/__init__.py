"""Planning: trace + step latency + budget -> the tree for each load, and what is to be said of it. NumPy only."""
