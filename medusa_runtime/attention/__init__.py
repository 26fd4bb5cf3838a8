"""Tree attention: one registered transformers attention function, whatever computes it."""

from .context import TREE_ATTENTION, AttentionContext, TreeMask
from .function import register, triton_serves

__all__ = ["TREE_ATTENTION", "AttentionContext", "TreeMask", "register", "triton_serves"]
