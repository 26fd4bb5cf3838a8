"""Acceptance: by which rule a tree's tokens stand. The rules' names and parameters need no torch."""
