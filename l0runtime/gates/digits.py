"""What does a small gated network look like that trains in seconds, on data that needs no download?"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

from l0runtime.errors import MissingDependencyError
from l0runtime.gates.penalty import PaperPenalty, kept_units
from l0runtime.gates.progress import Progress
from l0runtime.gates.training import Trainer, TrainingOptions
from l0runtime.gates.vgg import GatedVGG

_TEST_SHARE = 5  # every fifth image is kept for the test
_STAGES = ((32, 32), (64,))
_LAMBDAS = (4.0, 0.2, 0.15, 0.25)  # the first filters are cheap: without a larger one they all stay
_GATE_LEARNING_RATE = 0.03


@dataclass(frozen=True)
class DigitsRun:
    """A network trained on the digits, with what it was judged by.

    Args:
        model: the averaged network, in eval() mode.
        test_error: fraction of the test images that it classifies wrongly.
        test_inputs, test_labels: the test set, float32 [360, 1, 8, 8] in [0, 1] and int64 [360].
        kept_units: per gated layer, units whose gate is open and units in all.
    """

    model: nn.Module
    test_error: float
    test_inputs: Tensor
    test_labels: Tensor
    kept_units: dict[str, tuple[int, int]]


def load_digits() -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """scikit-learn's 1797 handwritten digits: training inputs and labels, test inputs and labels.

    Inputs are float32 [N, 1, 8, 8] in [0, 1]; every fifth image is a test image.

    Raises:
        MissingDependencyError: scikit-learn is not installed.
    """
    try:
        from sklearn.datasets import load_digits as load
    except ImportError as error:
        raise MissingDependencyError("The digits come with scikit-learn: pip install scikit-learn.") from error
    images, labels = load(return_X_y=True)
    inputs = torch.from_numpy(images.astype(np.float32) / 16).view(-1, 1, 8, 8)
    targets = torch.from_numpy(labels.astype(np.int64))
    is_test = torch.arange(len(targets)) % _TEST_SHARE == 0
    return inputs[~is_test], targets[~is_test], inputs[is_test], targets[is_test]


def train_digits(progress: Progress | None = None, *, epochs: int = 60, seed: int = 0) -> DigitsRun:
    """Train a small gated convolutional network on scikit-learn's digits.

    Args:
        progress: told after each step how far the run is, such as `progress_bar("training")` gives.
        epochs: passes over the 1437 training images.
        seed: the result depends on nothing else on a given machine and number of threads.
    Raises:
        MissingDependencyError: scikit-learn is not installed.
    """
    inputs, labels, test_inputs, test_labels = load_digits()
    torch.manual_seed(seed)
    model = GatedVGG(channels=1, stages=_STAGES, classes=10, batch_norm=False)
    penalty = PaperPenalty(model, _LAMBDAS, len(labels))
    options = TrainingOptions(
        epochs=epochs,
        batch_size=64,
        learning_rate=2e-3,
        gate_learning_rate=_GATE_LEARNING_RATE,
        average_decay=0.98,
        seed=seed,
    )
    trainer = Trainer(model, inputs, labels, penalty, options)
    trainer.run(progress)
    trained = trainer.evaluated_model.eval()
    return DigitsRun(
        model=trained,
        test_error=trainer.evaluate(test_inputs, test_labels),
        test_inputs=test_inputs,
        test_labels=test_labels,
        kept_units=kept_units(trained),
    )
