"""Profiling: prompts, the model's own output on them, and every head's rank for every token of it. May import torch."""
