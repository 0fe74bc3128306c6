"""Tensors by name: folders, layout, adapters, earlier candidates, stacks, the pool; reading and streamed saving.

Nothing here runs a model or merges a tensor.
"""
