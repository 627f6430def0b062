"""What does a Hugging Face BERT compute, written so that sub-layers can be absent and hidden dimensions few?

Parameter names are Hugging Face's, so that a state dict loads as it is. What the formats of pruned BERTs need beyond
it: the width of the residual stream and of the heads apart (`hidden` need not be heads * head_width), and layers whose
attention or MLP is skipped with its LayerNorm.

Source: transformers/models/bert/modeling_bert.py. Absolute positions, no decoder, no cache.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from converters.formats.hugging_face import whole_number
from l0runtime.errors import ModelFileError, UnsupportedModelError

if TYPE_CHECKING:
    from torch import Tensor

_ACTIVATIONS: dict[str, nn.Module] = {"gelu": nn.GELU(), "relu": nn.ReLU(), "gelu_new": nn.GELU(approximate="tanh")}
_EXAMPLE = (2, 16)  # batch and length of the example input
# what a transformers of long ago stored beside the parameters
_CONSTANTS = ("bert.embeddings.position_ids",)
_OLD_NAMES = ((".gamma", ".weight"), (".beta", ".bias"))


@dataclass(frozen=True)
class BertShape:
    """Sizes of a BERT.

    Args:
        vocabulary, positions, types: rows of the three embedding tables.
        hidden: width of the residual stream.
        layers, heads, head_width, intermediate: of the encoder.
        activation: name of the MLP's activation.
        epsilon: of LayerNorm.
        labels: outputs of the head.
        head: "classifier" (pooled), "qa_outputs" (per token) or None.
        skipped: names of sub-layers that pass their input on, such as "3.attention" and "3.output".
    """

    vocabulary: int
    positions: int
    types: int
    hidden: int
    layers: int
    heads: int
    head_width: int
    intermediate: int
    activation: str
    epsilon: float
    labels: int
    head: str | None
    skipped: frozenset[str] = field(default_factory=frozenset)


def shape_of(config: Mapping[str, Any], state: Mapping[str, Tensor], path: Path) -> BertShape:
    """Sizes by the configuration, and the head by the parameters.

    Raises:
        ModelFileError: a size is missing or odd.
        UnsupportedModelError: another architecture than BERT, or a variant that is not read.
    """
    settings = dict(config)
    kind = settings.get("model_type", "bert")
    if kind != "bert":
        raise UnsupportedModelError(
            f"{path}: a network of type {kind!r}; only bert is read. Load it in torch and convert the live module."
        )
    if settings.get("position_embedding_type", "absolute") != "absolute" or settings.get("is_decoder"):
        raise UnsupportedModelError(
            f"{path}: a BERT with relative positions or as a decoder, which this reader does not know. "
            "Load it in torch and convert the live module."
        )
    activation = settings.get("hidden_act", "gelu")
    if activation not in _ACTIVATIONS:
        raise UnsupportedModelError(
            f"{path}: hidden_act is {activation!r}; known are {', '.join(sorted(_ACTIVATIONS))}."
        )
    hidden, heads = whole_number(settings, "hidden_size", path), whole_number(settings, "num_attention_heads", path)
    if hidden % heads:
        raise ModelFileError(f"{path}: hidden_size {hidden} is no multiple of num_attention_heads {heads}.")
    head = next((name for name in ("classifier", "qa_outputs") if f"{name}.weight" in state), None)
    epsilon = settings.get("layer_norm_eps", 1e-12)
    if not isinstance(epsilon, float) or not 0 < epsilon < 1:
        raise ModelFileError(f"{path}: layer_norm_eps is {epsilon!r}; expected a number between 0 and 1.")
    return BertShape(
        vocabulary=whole_number(settings, "vocab_size", path),
        positions=whole_number(settings, "max_position_embeddings", path),
        types=whole_number(settings, "type_vocab_size", path),
        hidden=hidden,
        layers=whole_number(settings, "num_hidden_layers", path),
        heads=heads,
        head_width=hidden // heads,
        intermediate=whole_number(settings, "intermediate_size", path),
        activation=activation,
        epsilon=epsilon,
        labels=state[f"{head}.weight"].shape[0] if head else 0,
        head=head,
    )


def renamed(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Parameters under today's names, without what is no parameter; a bare BertModel gets the prefix of its kin."""
    names = {}
    for name, tensor in state.items():
        for old, new in _OLD_NAMES:
            name = name.removesuffix(old) + new if name.endswith(old) else name
        names[name] = tensor
    if not any(name.startswith("bert.") for name in names):
        names = {f"bert.{name}": tensor for name, tensor in names.items()}
    return {name: tensor for name, tensor in names.items() if name not in _CONSTANTS}


def example_inputs(shape: BertShape) -> tuple[Tensor, Tensor, Tensor]:
    """Random tokens, the last quarter of one example masked, two segments: ids, attention mask and types."""
    generator = torch.Generator().manual_seed(0)
    length = min(_EXAMPLE[1], shape.positions)
    ids = torch.randint(0, shape.vocabulary, (_EXAMPLE[0], length), generator=generator)
    mask = torch.ones_like(ids)
    mask[1, length - length // 4 :] = 0
    types = (torch.arange(length) >= length // 2).long().expand_as(ids).clone() % shape.types
    return ids, mask, types


class Bert(nn.Module):
    """Encoder and head; inputs [batch, length] of int64.

    Outputs: logits [batch, labels] of a classifier, start and end logits [batch, length] of a question answerer, or
    the last hidden states [batch, length, hidden].
    """

    def __init__(self, shape: BertShape, pooler: bool = True) -> None:
        super().__init__()
        self.shape = shape
        self.bert = _Encoder(shape, pooler)
        if shape.head is not None:
            # the pooler's output has the full width, the residual stream may be narrower
            width = shape.heads * shape.head_width if shape.head == "classifier" else shape.hidden
            self.add_module(shape.head, nn.Linear(width, shape.labels))

    def forward(
        self, input_ids: Tensor, attention_mask: Tensor, token_type_ids: Tensor
    ) -> Tensor | tuple[Tensor, Tensor]:
        hidden: Tensor = self.bert(input_ids, attention_mask, token_type_ids)
        if self.shape.head is None:
            return hidden
        head = self.get_submodule(self.shape.head)
        if self.shape.head == "qa_outputs":
            logits = head(hidden)  # [batch, length, 2]
            return logits[..., 0], logits[..., 1]
        output: Tensor = head(self.bert.pool(hidden))
        return output


class _Encoder(nn.Module):
    def __init__(self, shape: BertShape, pooler: bool) -> None:
        super().__init__()
        self.embeddings = _Embeddings(shape)
        self.encoder = nn.Module()
        self.encoder.layer = nn.ModuleList(_Layer(shape, index) for index in range(shape.layers))
        self.pooler = nn.Module() if pooler else None
        if self.pooler is not None:
            self.pooler.dense = nn.Linear(shape.hidden, shape.heads * shape.head_width)

    def forward(self, ids: Tensor, mask: Tensor, types: Tensor) -> Tensor:
        hidden: Tensor = self.embeddings(ids, types)
        lowest = torch.finfo(hidden.dtype).min
        bias = (1 - mask.to(hidden.dtype))[:, None, None, :] * lowest  # [batch, 1, 1, length]
        for layer in self.encoder.layer:  # type: ignore[union-attr]
            hidden = layer(hidden, bias)
        return hidden

    def pool(self, hidden: Tensor) -> Tensor:
        assert self.pooler is not None
        return torch.tanh(self.pooler.dense(hidden[:, 0]))  # type: ignore[operator]


class _Embeddings(nn.Module):
    def __init__(self, shape: BertShape) -> None:
        super().__init__()
        self.word_embeddings = nn.Embedding(shape.vocabulary, shape.hidden)
        self.position_embeddings = nn.Embedding(shape.positions, shape.hidden)
        self.token_type_embeddings = nn.Embedding(shape.types, shape.hidden)
        self.LayerNorm = nn.LayerNorm(shape.hidden, shape.epsilon)

    def forward(self, ids: Tensor, types: Tensor) -> Tensor:
        positions = self.position_embeddings.weight[: ids.shape[1]]
        output: Tensor = self.LayerNorm(self.word_embeddings(ids) + positions + self.token_type_embeddings(types))
        return output


class _Layer(nn.Module):
    def __init__(self, shape: BertShape, index: int) -> None:
        super().__init__()
        inner = shape.heads * shape.head_width
        self.attention = self.intermediate = self.output = None
        if f"{index}.attention" not in shape.skipped:
            self.attention = nn.Module()
            self.attention.self = _Heads(shape)
            self.attention.output = _AddAndNorm(inner, shape)
        if f"{index}.output" not in shape.skipped:
            self.intermediate = nn.Module()
            self.intermediate.dense = nn.Linear(shape.hidden, shape.intermediate)
            self.output = _AddAndNorm(shape.intermediate, shape)
        self.activation = _ACTIVATIONS[shape.activation]

    def forward(self, hidden: Tensor, bias: Tensor) -> Tensor:
        if self.attention is not None:
            hidden = self.attention.output(self.attention.self(hidden, bias), hidden)  # type: ignore[operator]
        if self.output is not None and self.intermediate is not None:
            hidden = self.output(self.activation(self.intermediate.dense(hidden)), hidden)  # type: ignore[operator]
        return hidden


class _Heads(nn.Module):
    def __init__(self, shape: BertShape) -> None:
        super().__init__()
        self.heads, self.head_width = shape.heads, shape.head_width
        inner = shape.heads * shape.head_width
        self.query, self.key, self.value = (nn.Linear(shape.hidden, inner) for _ in range(3))

    def forward(self, hidden: Tensor, bias: Tensor) -> Tensor:
        def split(x: Tensor) -> Tensor:  # [batch, heads, length, head_width]
            return x.reshape(*x.shape[:2], self.heads, self.head_width).transpose(1, 2)

        query, key, value = split(self.query(hidden)), split(self.key(hidden)), split(self.value(hidden))
        scores = query @ key.transpose(-1, -2) / self.head_width**0.5 + bias
        return (torch.softmax(scores, -1) @ value).transpose(1, 2).flatten(2)


class _AddAndNorm(nn.Module):
    def __init__(self, inner: int, shape: BertShape) -> None:
        super().__init__()
        self.dense = nn.Linear(inner, shape.hidden)
        self.LayerNorm = nn.LayerNorm(shape.hidden, shape.epsilon)

    def forward(self, x: Tensor, stream: Tensor) -> Tensor:
        output: Tensor = self.LayerNorm(self.dense(x) + stream)
        return output


def without(shape: BertShape, skipped: Sequence[str], hidden: int) -> BertShape:
    """The same BERT without some sub-layers, and with a residual stream of another width."""
    return replace(shape, skipped=frozenset(skipped), hidden=hidden)
