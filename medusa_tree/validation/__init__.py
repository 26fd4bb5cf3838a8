"""Validation: decode with the tree and plainly, and judge what was predicted. Imports torch."""
