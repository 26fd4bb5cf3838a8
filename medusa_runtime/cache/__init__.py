"""The KV cache of a tree: slots, layers, and the kernels that move its rows."""
