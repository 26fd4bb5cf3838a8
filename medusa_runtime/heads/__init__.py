"""Medusa heads: what they compute, and the files they are kept in."""
