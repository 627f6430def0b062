"""How does a checkpoint of CoFiPruning (Xia, Zhong & Chen 2022) become a gated model?

The folder that its trainer writes: a Hugging Face BERT (config.json, pytorch_model.bin) and zs.pt, the gates' final
values (any of the five may be missing, which means 1):

    head_z          [layers, 1, heads, 1, 1]       times each head's context
    head_layer_z    [layers]                       times the attention's output, before the residual
    intermediate_z  [layers, 1, 1, intermediate]   times the MLP's activations
    mlp_z           [layers]                       times the MLP's output
    hidden_z        [hidden]                       times the embeddings, every sub-layer's output and LayerNorm's output

LayerNorm takes its mean and variance over the dimensions with hidden_z != 0 alone. A sub-layer whose output is zero
throughout (head_layer_z or mlp_z 0) is skipped with its LayerNorm: the residual stream passes unchanged. This is the
masked model that was trained and evaluated; the authors' own prune_model_with_z differs from it where gates of the
hidden dimensions are fractional, and where all heads of a layer but not the layer are closed.

zs.pt holds the values that the rule gave (top-k, with sigmoid(0.8 log_alpha / T) for the open ones), so no constant is
needed. Where it holds None, as question answering writes it, the gates are in l0_module.pt, a pickled module, which is
not read: zs = torch.load("l0_module.pt", weights_only=False).forward(training=False); torch.save(zs, "zs.pt").

Source: models/modeling_bert.py, models/l0_module.py, utils/cofi_utils.py and trainer/trainer.py of
princeton-nlp/CoFiPruning. Not checked on a file of the authors.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from converters.formats.folding import check_finite, group_of, scale, take_options
from converters.formats.hugging_face import CONFIG, read_json, read_weights
from converters.formats.parameters import model_from_parameters
from converters.sources import Candidate, GatedModel, GateGroup, SourceOptions
from l0runtime.errors import ModelFileError, OptionError, UnsupportedModelError

if TYPE_CHECKING:
    from torch import Tensor

    from converters.formats.bert import BertShape

_GATES = "zs.pt"
_PICKLED = "l0_module.pt"
_KINDS = ("head_z", "head_layer_z", "intermediate_z", "mlp_z", "hidden_z")
# distillation's, no part of the network
_TRAINING_ONLY = ("layer_transformation.weight", "layer_transformation.bias")
_EMBEDDINGS = "bert.embeddings."
_TABLES = ("word_embeddings", "position_embeddings", "token_type_embeddings")


class CofiPruning:
    """A BERT with gates on heads, neurons, hidden dimensions and whole sub-layers."""

    name = "cofi"
    description = "folder of CoFiPruning: a Hugging Face BERT and zs.pt"

    def recognise(self, file: Candidate) -> bool:
        if file.path.is_dir():
            return any((file.path / name).is_file() for name in (_GATES, _PICKLED))
        content = file.torch_content
        return isinstance(content, Mapping) and bool(content) and set(content) <= set(_KINDS)

    def load(self, file: Candidate, options: SourceOptions) -> GatedModel:
        take_options(file, options, self.name, {})
        if options.model is not None:
            raise OptionError(f"{file.path}: config.json says which network it is; leave out the model.")
        folder = file.path if file.path.is_dir() else file.path.parent
        zs = _read_gates(folder / _GATES if file.path.is_dir() else file.path)
        from converters.formats.bert import Bert, example_inputs, renamed, shape_of, without

        state = {name: t for name, t in read_weights(folder).items() if name not in _TRAINING_ONLY}
        state = renamed(state)
        config = folder / CONFIG
        shape = shape_of(read_json(config), state, config)
        _check_unpruned(state, shape, folder)
        if shape.head is None:
            raise UnsupportedModelError(
                f"{folder}: holds neither a classifier nor qa_outputs; expected a sequence classifier or a question "
                "answerer, as CoFiPruning trains them."
            )
        gates = _Gates(zs, shape, folder)
        skipped = gates.fold(state)
        has_pooler = "bert.pooler.dense.weight" in state
        module = Bert(without(shape, skipped, state[f"{_EMBEDDINGS}LayerNorm.weight"].numel()), has_pooler)
        return model_from_parameters(
            file,
            options,
            state,
            format=self.name,
            built=(module, example_inputs(shape)),
            gates=gates.groups(),
            notes=gates.notes(skipped),
        )


SOURCE = CofiPruning()


def _read_gates(path: Path) -> dict[str, Tensor]:
    import torch

    from converters.torch_files import read_torch_file

    if not path.is_file():
        raise ModelFileError(
            f"{path}: no such file; {_PICKLED} is a pickled module, which is not read. Where it was made: "
            f'zs = torch.load("{_PICKLED}", weights_only=False).forward(training=False); torch.save(zs, "{_GATES}").'
        )
    content = read_torch_file(path)
    if content is None:
        raise UnsupportedModelError(
            f"{path}: holds None: the gates are in {_PICKLED}, a pickled module, which is not read. Where it was made: "
            f'zs = torch.load("{_PICKLED}", weights_only=False).forward(training=False); torch.save(zs, "{_GATES}").'
        )
    if not isinstance(content, Mapping) or not content:
        raise ModelFileError(f"{path}: found {type(content).__name__}, expected gates by kind ({', '.join(_KINDS)}).")
    for kind, z in content.items():
        if kind not in _KINDS or not isinstance(z, torch.Tensor) or not z.is_floating_point():
            raise ModelFileError(f"{path}: {kind!r} is no gate; expected tensors named {', '.join(_KINDS)}.")
        check_finite(z, kind, path)
        if bool((z < 0).any()):
            raise ModelFileError(f"{path}: {kind} holds negative gates; expected values in [0, 1].")
    return dict(content)


def _check_unpruned(state: Mapping[str, Tensor], shape: BertShape, folder: Path) -> None:
    table = state.get(f"{_EMBEDDINGS}word_embeddings.weight")
    if table is None:
        raise ModelFileError(f"{folder}: its parameters are not those of a BERT: word_embeddings are missing.")
    if table.dim() != 2 or table.shape[1] != shape.hidden:
        raise ModelFileError(
            f"{folder}: word_embeddings have shape {list(table.shape)}, hidden_size is {shape.hidden}. The gates are "
            "applied already, or the files belong to different models; give the folder from before pruning."
        )


class _Gates:
    """The five kinds of gates of one model, as [layers, ...] tensors."""

    def __init__(self, zs: Mapping[str, Tensor], shape: BertShape, folder: Path) -> None:
        """Raises ModelFileError: a kind with another number of gates than the network has units."""
        import torch

        self.shape, self.given = shape, set(zs)
        counts = {
            "head_z": (shape.layers, shape.heads),
            "head_layer_z": (shape.layers,),
            "intermediate_z": (shape.layers, shape.intermediate),
            "mlp_z": (shape.layers,),
            "hidden_z": (shape.hidden,),
        }
        self.values: dict[str, Tensor] = {}
        for kind, size in counts.items():
            z = zs.get(kind, torch.ones(size))
            expected = torch.Size(size)
            if torch.Size([n for n in z.shape if n != 1]) != torch.Size([n for n in size if n != 1]):
                raise ModelFileError(
                    f"{folder}: {kind} has shape {list(z.shape)}; the network of config.json has {list(size)} of them. "
                    "The files belong to different models."
                )
            self.values[kind] = z.detach().double().reshape(expected)

    def fold(self, state: dict[str, Tensor]) -> list[str]:
        """Multiply all gates in and drop the dead hidden dimensions, in place; gives the skipped sub-layers."""
        skipped = []
        for layer in range(self.shape.layers):
            prefix = f"bert.encoder.layer.{layer}"
            heads = self.values["head_z"][layer].repeat_interleave(self.shape.head_width)
            neurons = self.values["intermediate_z"][layer]
            _fold_sublayer(state, f"{prefix}.attention.output.dense", heads, self.values["head_layer_z"][layer])
            _fold_sublayer(state, f"{prefix}.output.dense", neurons, self.values["mlp_z"][layer])
            for name, parts in (("attention", ("attention.",)), ("output", ("intermediate.", "output."))):
                dense = f"{prefix}.{'attention.output' if name == 'attention' else 'output'}.dense"
                if not any(bool(state[f"{dense}.{p}"].any()) for p in ("weight", "bias") if f"{dense}.{p}" in state):
                    skipped.append(f"{layer}.{name}")
                    for key in [key for key in state if key.startswith(tuple(f"{prefix}.{part}" for part in parts))]:
                        del state[key]
        _fold_hidden(state, self.values["hidden_z"])
        return skipped

    def groups(self) -> list[GateGroup]:
        """Gates for the report."""
        found = []
        for kind in _KINDS:
            if kind in self.given:
                z = self.values[kind]
                rows = z.unbind() if kind in ("head_z", "intermediate_z") else [z]
                found += [
                    group_of(kind if len(rows) == 1 else f"layer.{index}.{kind}", row, "top-k")
                    for index, row in enumerate(rows)
                ]
        return found

    def notes(self, skipped: list[str]) -> list[str]:
        """Remarks for the report."""
        hidden = self.values["hidden_z"]
        notes = []
        if bool((hidden == 0).any()):
            notes.append(
                f"{int((hidden == 0).sum())} of {hidden.numel()} hidden dimensions are removed on reading: LayerNorm "
                "is taken over the others alone"
            )
        if skipped:
            notes.append(f"skipped with their LayerNorm: {', '.join(skipped)}")
        return notes


def _fold_sublayer(state: dict[str, Tensor], dense: str, inputs: Tensor, output: Tensor) -> None:
    """dense(z x) times a gate: columns by z, everything by the gate."""
    weight, bias = state.get(f"{dense}.weight"), state.get(f"{dense}.bias")
    if weight is not None and weight.dim() == 2 and weight.shape[1] == inputs.numel():
        state[f"{dense}.weight"] = scale(weight, inputs * output, 1)
    if bias is not None:
        state[f"{dense}.bias"] = (bias.double() * output).to(bias.dtype)


def _fold_hidden(state: dict[str, Tensor], z: Tensor) -> None:
    """Gate the residual stream wherever it is written, and take the dead dimensions out where it is read, too."""
    live = z.nonzero()[:, 0]

    def take(name: str, dim: int, gated: bool) -> None:
        tensor = state.get(name)
        if tensor is None or tensor.dim() <= dim or tensor.shape[dim] != z.numel():
            return  # another shape is reported when the parameters are loaded
        state[name] = (scale(tensor, z, dim) if gated else tensor).index_select(dim, live).contiguous()

    for table in _TABLES:
        take(f"{_EMBEDDINGS}{table}.weight", 1, True)
    for name in list(state):
        layer, _, parameter = name.rpartition(".")
        if layer.endswith(("LayerNorm", "output.dense")):
            take(name, 0, True)
        elif parameter == "weight" and layer.endswith(
            (".query", ".key", ".value", ".intermediate.dense", ".pooler.dense", "qa_outputs")
        ):
            take(name, 1, False)
