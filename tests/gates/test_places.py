"""Are the places for gates those of the network, with the parameters that must be scaled and what they cost?"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from gates.attachable import resnet, transformer
from l0runtime.gates.attaching import find
from l0runtime.gates.places import Found, Place


def place(found: Found, name: str) -> Place:
    return next(place for place in found.places if place.name == name)


def scaled(found: Found, name: str) -> set[tuple[str, int | None]]:
    return {(point.tensor, point.axis) for point in place(found, name).points}


def test_a_residual_network_has_inner_channels_a_stream_and_blocks() -> None:
    found = find(*resnet())
    assert [(p.name, p.kind, p.size) for p in found.places] == [
        ("block1.conv1", "units", 4),
        ("block2.conv1", "units", 5),
        ("stem.stream", "stream", 6),
        ("block1.bn2.block", "blocks", 1),
        ("block2.bn2.block", "blocks", 1),
    ]
    assert found.refused == {"fc": "it is an output of the model"}


def test_inner_channels_are_scaled_behind_their_batch_norm_which_would_undo_a_gate_before_it() -> None:
    assert scaled(find(*resnet()), "block1.conv1") == {("block1.bn1.weight", 0), ("block1.bn1.bias", 0)}


def test_everything_that_emits_into_a_stream_is_scaled() -> None:
    norms = ("bn", "block1.bn2", "block2.bn2")
    assert scaled(find(*resnet()), "stem.stream") == {(f"{n}.{t}", 0) for n in norms for t in ("weight", "bias")}


def test_a_block_is_scaled_as_a_whole_where_it_ends() -> None:
    assert scaled(find(*resnet()), "block2.bn2.block") == {("block2.bn2.weight", None), ("block2.bn2.bias", None)}


def test_a_transformer_has_heads_neurons_a_stream_and_blocks() -> None:
    found = find(*transformer())
    assert [(p.name, p.kind, p.size) for p in found.places] == [
        ("attention.heads", "heads", 2),
        ("up", "units", 10),
        ("embed.stream", "stream", 8),
        ("attention.out_proj.block", "blocks", 1),
        ("down.block", "blocks", 1),
    ]
    assert scaled(found, "up") == {("down.weight", 1)}
    assert place(found, "attention.heads").points[0].index == (0, 0, 0, 0, 1, 1, 1, 1)
    assert scaled(found, "attention.heads") == {("attention.out_proj.weight", 1)}


def test_a_stream_that_norms_see_is_scaled_at_every_writer_and_every_norm() -> None:
    names = {name for name, _ in scaled(find(*transformer()), "embed.stream")}
    norms = {f"{norm}.{tensor}" for norm in ("norm1", "norm2", "norm") for tensor in ("weight", "bias")}
    writers = {f"{layer}.{t}" for layer in ("embed", "attention.out_proj", "down") for t in ("weight", "bias")}
    assert names == norms | writers | {"position"}


def test_the_paper_s_group_size_is_that_of_the_writing_layer() -> None:
    assert place(find(*resnet()), "block1.conv1").unit_parameters == 6 * 9
    assert place(find(*transformer()), "up").unit_parameters == 8 + 1


def test_multiply_accumulates_by_hand() -> None:
    found = find(*resnet())
    pixels = 36
    stem, inner1, inner2, fc = 2 * 6 * 9 * pixels, 6 * 4 * 9 * pixels, 6 * 5 * 9 * pixels, 6 * 3
    assert found.macs.total == stem + 2 * inner1 + 2 * inner2 + fc
    # places: block1.conv1, block2.conv1, stream, block1, block2
    shares = torch.tensor([0.25, 1.0, 0.5, 1.0, 0.0])
    expected = stem * 0.5 + 2 * inner1 * 0.25 * 0.5 + fc * 0.5
    assert torch.isclose(found.macs.fraction(shares) * found.macs.total, torch.tensor(expected))


def test_attention_costs_what_its_heads_keep_on_both_sides() -> None:
    found = find(*transformer())
    tokens, width, heads, size = 5, 8, 2, 4
    attention = tokens * width * 3 * width + 2 * heads * tokens * tokens * size + tokens * width * width
    rest = tokens * 3 * width + 2 * tokens * width * 10 + width * 3
    assert found.macs.total == attention + rest
    half_the_heads = torch.tensor([0.5, 1.0, 1.0, 1.0, 1.0])
    assert torch.isclose(found.macs.fraction(half_the_heads) * found.macs.total, torch.tensor(attention / 2 + rest))


def test_an_unknown_operator_costs_gates_and_says_so() -> None:
    class Odd(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.second, self.third = nn.Linear(3, 4), nn.Linear(4, 5), nn.Linear(5, 2)

        def forward(self, x: Tensor) -> Tensor:
            return self.third(F.relu(self.second(torch.cumprod(self.first(x), 1))))

    found = find(Odd(), (torch.randn(2, 3),))
    assert [p.name for p in found.places] == ["second"]
    assert found.refused["first"] == "the operator cumprod has no rule"


def test_layers_whose_outputs_are_multiplied_share_one_gate() -> None:
    class GatedMlp(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.gate, self.up, self.down = nn.Linear(3, 8), nn.Linear(3, 8), nn.Linear(8, 2)

        def forward(self, x: Tensor) -> Tensor:
            return self.down(F.silu(self.gate(x)) * self.up(x))

    (only,) = find(GatedMlp(), (torch.randn(2, 3),)).places
    assert (only.kind, only.size, set(only.layers)) == ("units", 8, {"gate", "up", "down"})


def test_channels_that_are_concatenated_keep_gates_of_their_own() -> None:
    class Dense(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = nn.Conv2d(1, 3, 1), nn.Conv2d(1, 5, 1)
            self.bn, self.c = nn.BatchNorm2d(8), nn.Conv2d(8, 2, 1)

        def forward(self, x: Tensor) -> Tensor:
            return self.c(F.relu(self.bn(torch.cat([self.a(x), self.b(x)], 1))))

    found = find(Dense(), (torch.randn(2, 1, 4, 4),))
    assert [(p.name, p.size) for p in found.places] == [("a", 3), ("b", 5)]
    assert place(found, "b").points[0].index == (-1, -1, -1, 0, 1, 2, 3, 4)
    # c costs 8 x 2 a pixel; without b's channels 3 x 2
    shares = torch.tensor([1.0, 0.0])
    assert torch.isclose(found.macs.fraction(shares) * found.macs.total, torch.tensor(16.0 * (3 + 3 * 2)))


def test_a_branch_that_is_read_from_outside_is_no_block() -> None:
    class Tapped(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b, self.c = nn.Linear(4, 4), nn.Linear(4, 4), nn.Linear(4, 4)

        def forward(self, x: Tensor) -> Tensor:
            x = F.relu(x)
            inner = F.relu(self.a(x))
            return self.c(x + self.b(inner)) + inner

    found = find(Tapped(), (torch.randn(2, 4),))
    assert [p.name for p in found.places if p.kind == "blocks"] == ["c.block"]
    assert found.refused["b.block"] == "its branch is read from outside"
