"""What does an ONNX graph compute, in float64, judged without any code of the engine?

    evaluate(model, inputs)   outputs of a model, every floating-point tensor upcast to float64
    upcast(model)             the float64 copy itself, for engines that should be judged without rounding
    relative_difference(a, b) largest difference, relative to the scale of the reference

Nothing in this package imports `converters` or `l0runtime`.
"""

from oracle.difference import relative_difference
from oracle.evaluate import evaluate
from oracle.upcast import upcast

__all__ = ["evaluate", "relative_difference", "upcast"]
