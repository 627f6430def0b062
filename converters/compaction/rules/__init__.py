"""Rules by operator family; importing this package registers all of them."""

from converters.compaction.rules import (
    convolution,
    elementwise,
    indexing,
    linear,
    normalisation,
    pooling,
    recurrent,
    reduction,
    resampling,
    views,
)

__all__ = [
    "convolution",
    "elementwise",
    "indexing",
    "linear",
    "normalisation",
    "pooling",
    "recurrent",
    "reduction",
    "resampling",
    "views",
]
