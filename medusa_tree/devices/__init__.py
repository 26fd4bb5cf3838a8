"""Devices: what a decoding step costs, measured here or modelled from a data sheet. NumPy only, but for measure."""
