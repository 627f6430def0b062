"""The zoo; importing it makes torchvision importable wherever its compiled operators are not."""

from benchmarks.zoo import torchvision_operators as torchvision_operators
