"""Rules by operator family; importing this package registers all of them."""

from converters.compaction.rules import (
    convolution,
    elementwise,
    indexing,
    layer_norm,
    linear,
    normalisation,
    pooling,
    reduction,
    views,
)

__all__ = [
    "convolution",
    "elementwise",
    "indexing",
    "layer_norm",
    "linear",
    "normalisation",
    "pooling",
    "reduction",
    "views",
]
