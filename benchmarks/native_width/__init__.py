"""Compact models against the same architectures built at the surviving widths."""

from benchmarks.zoo import torchvision_operators as torchvision_operators  # importing it makes torchvision importable
