"""Training Medusa heads: Medusa-1, Medusa-2 and self-distillation (Cai et al., 2024, arXiv 2401.10774, §2.2 and §2.3)."""
