"""Rules by operator family; importing this package registers all of them."""

from converters.compaction.rules import (
    addressing,
    convolution,
    einsum,
    elementwise,
    generators,
    group_norm,
    heads,
    indexing,
    layer_norm,
    linear,
    normalisation,
    pooling,
    reduction,
    softmax,
    views,
)

__all__ = [
    "addressing",
    "convolution",
    "einsum",
    "elementwise",
    "generators",
    "group_norm",
    "heads",
    "indexing",
    "layer_norm",
    "linear",
    "normalisation",
    "pooling",
    "reduction",
    "softmax",
    "views",
]
