"""How does a checkpoint of ConvNet-AIG (andreasveit/convnet-aig, Veit & Belongie 2018) become a conditional model?

`runs/<name>/checkpoint.pth.tar` and `model_best.pth.tar`: a dict with epoch, best_prec1 and state_dict, whose names
begin with "module." (DataParallel). Beside the parameters of a ResNet, each block has a gate

    fc1, fc1bn, fc2     1x1 convolutions on the mean over space, [hidden, in], [2, hidden]; BatchNorm between

with two logits; index 1 runs the block. The code samples from them (Gumbel-softmax) in evaluation too, so that its
outputs are random. Here argmax decides: the block runs where logit 1 exceeds logit 0.

CIFAR networks (ResNet110_cifar: 3x3 stem, three layers of basic blocks, 32x32 images) and ImageNet ones
(ResNet50/101/152_ImageNet: 7x7 stem, four layers of bottlenecks, 224x224). Files from before torch 0.4 lack
num_batches_tracked, which evaluation does not read.

Source: convnet_aig.py, gumbelmodule.py, train.py and train_img.py of the repository. Not checked on a file of the
authors, and not against the accuracies that they report, which are means over random gates.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from converters.formats.parameters import model_from_parameters, names_in, read_state
from converters.sources import Candidate, GatedModel, SourceOptions
from l0runtime.errors import ModelFileError, OptionError

if TYPE_CHECKING:
    from torch import Tensor

_GATE = (".fc1.weight", ".fc1bn.weight", ".fc2.weight")


class ConvNetAig:
    """ResNets for CIFAR and ImageNet with a gate in every block."""

    name = "convnet-aig"
    description = "checkpoint of ConvNet-AIG (ResNets for CIFAR and ImageNet, a gate in every block)"

    def recognise(self, file: Candidate) -> bool:
        names = names_in(file)
        return all(any(name.endswith(suffix) for name in names) for suffix in _GATE)

    def load(self, file: Candidate, options: SourceOptions) -> GatedModel:
        from converters.formats.adaptive_networks import AdaptiveBlock, adaptive_resnet_of
        from converters.formats.folding import take_options
        from converters.formats.plain_networks import example_image

        take_options(file, options, self.name, {})
        if options.model is not None:
            raise OptionError(f"{file.path}: the parameters' names say which network it is; leave out the model.")
        state = read_state(file)
        try:
            module, shape = adaptive_resnet_of(state)
        except (KeyError, IndexError, ValueError) as error:
            raise ModelFileError(
                f"{file.path}: its parameters are those of no ConvNet-AIG network ({error}); known are the ResNets for "
                "CIFAR and ImageNet. Load it in torch and convert the live module."
            ) from error
        _add_counters(state, module.state_dict())
        gates = sum(isinstance(block, AdaptiveBlock) for block in module.modules())
        return model_from_parameters(
            file,
            options,
            state,
            format=self.name,
            built=(module, example_image(shape)),
            gates=[],
            notes=[
                f"{gates} gates that look at the input: a block runs where logit 1 exceeds logit 0 (argmax); the "
                "original draws at random, in evaluation too"
            ],
        )


SOURCE = ConvNetAig()


def _add_counters(state: dict[str, Tensor], expected: dict[str, Tensor]) -> None:
    """BatchNorm's counters, where a file from before torch 0.4 has none at all."""
    counters = [name for name in expected if name.endswith(".num_batches_tracked")]
    if not any(name in state for name in counters):
        state.update({name: expected[name] for name in counters})
