"""Does the small example train a network that is both sparse and right?"""

from __future__ import annotations

import sys

import pytest
import torch

from l0runtime.errors import MissingDependencyError
from l0runtime.gates import error_rate, kept_units, load_digits, train_digits


def test_the_digits_are_split_without_overlap() -> None:
    inputs, labels, test_inputs, test_labels = load_digits()
    assert inputs.shape == (1437, 1, 8, 8)
    assert test_inputs.shape == (360, 1, 8, 8)
    assert labels.shape == (1437,)
    assert test_labels.shape == (360,)
    assert inputs.min() == 0
    assert inputs.max() == 1
    assert sorted(set(labels.tolist())) == sorted(set(test_labels.tolist())) == list(range(10))


@pytest.fixture(scope="module")
def calls() -> list[tuple[int, int, str]]:
    return []


def test_training_closes_half_of_the_filters_and_keeps_the_digits_apart(calls: list[tuple[int, int, str]]) -> None:
    run = train_digits(lambda *call: calls.append(call))
    # the same network without gates makes 3 to 6 errors in 360; three times its error is a broken training
    assert run.test_error <= 0.03
    assert run.test_error == error_rate(run.model, run.test_inputs, run.test_labels)
    filters = [run.kept_units[name] for name in ("features.0", "features.2", "features.5")]
    assert sum(kept for kept, _ in filters) <= 0.6 * sum(total for _, total in filters)
    assert run.kept_units == kept_units(run.model)
    assert not run.model.training
    assert calls[-1] == (len(calls), len(calls), "epoch 60")


def test_the_same_seed_trains_the_same_network() -> None:
    first, second = (train_digits(epochs=1).model.state_dict() for _ in range(2))
    assert all(torch.equal(first[name], second[name]) for name in first)


def test_without_scikit_learn_the_message_names_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "sklearn.datasets", None)
    with pytest.raises(MissingDependencyError) as caught:
        load_digits()
    assert str(caught.value) == "The digits come with scikit-learn: pip install scikit-learn."
