"""Damaged and malicious files: every reader gives a clear error or a model, executes nothing and writes nothing.

Seeded, so that a failure repeats: bytes are changed, cut and zeroed; and, where bytes alone would end in the archive's
checksums, the content is changed and saved again: entries dropped, renamed, given another shape, type or value.
"""

from __future__ import annotations

import os
import random
import shutil
import warnings
import zipfile
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import onnx
import pytest
import safetensors.torch
import torch
from format_agreement import FILES
from small_models import make_mlp
from torch import nn
from torch.nn.utils import prune

from benchmarks.sources.masked import cofi, constrained_sparsity, convnet_aig, flop, l0_arm, llm_shearing
from converters.sources import Candidate, SourceOptions, available_sources, find_source
from l0runtime.errors import L0RuntimeError
from l0runtime.gates import GatedLinear, save

_BYTES, _CONTENTS = 15, 25  # damaged files of each kind per reader


def plain() -> nn.Module:
    return nn.Sequential(nn.Linear(6, 4), nn.ReLU(), nn.Linear(4, 3))


def make_own(folder: Path) -> Path:
    save(nn.Sequential(GatedLinear(6, 4), nn.ReLU(), nn.Linear(4, 3)), folder / "own.safetensors")
    return folder / "own.safetensors"


def make_onnx(folder: Path) -> Path:
    onnx.save(make_mlp(), folder / "mlp.onnx")
    return folder / "mlp.onnx"


def make_amlab(folder: Path) -> Path:
    state = {}
    for layer, (inputs, outputs) in zip((0, 2), ((6, 4), (4, 3)), strict=True):
        state |= {f"output.{layer}.weights": torch.randn(inputs, outputs), f"output.{layer}.bias": torch.randn(outputs)}
        state[f"output.{layer}.qz_loga"] = torch.randn(inputs) * 3
    content = {"state_dict": state, "avg_params": list(state.values()), "beta_ema": 0.9, "steps_ema": 5, "epoch": 3}
    torch.save(content, folder / "checkpoint.pth.tar")
    return folder / "checkpoint.pth.tar"


def make_pt2(folder: Path) -> Path:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.export.save(torch.export.export(plain().eval(), (torch.ones(1, 6),)), folder / "program.pt2")
    return folder / "program.pt2"


def make_state(folder: Path) -> Path:
    torch.save(plain().state_dict(), folder / "state.pth")
    return folder / "state.pth"


def make_prune(folder: Path) -> Path:
    net = plain()
    prune.ln_structured(net[0], "weight", 0.5, n=2, dim=0)  # type: ignore[index]
    torch.save(net.state_dict(), folder / "pruned.pth")
    return folder / "pruned.pth"


def make_ao(folder: Path) -> Path:
    from torch.ao.pruning import WeightNormSparsifier

    net = plain()
    sparsifier = WeightNormSparsifier(sparsity_level=0.5)
    sparsifier.prepare(net, [{"tensor_fqn": "0.weight"}])
    sparsifier.step()
    torch.save({"model": net.state_dict(), "sparsifier": sparsifier.state_dict()}, folder / "ao.pth")
    return folder / "ao.pth"


def make_nni(folder: Path) -> Path:
    return Path(shutil.copy(FILES / "nni" / "wrapped.pth", folder))


def nni_net() -> nn.Module:
    layers = [nn.Conv2d(3, 8, 3, padding=1), nn.ReLU(), nn.Conv2d(8, 6, 3), nn.ReLU(), nn.Flatten(), nn.Linear(216, 5)]
    return nn.Sequential(*layers)


def make_nn_pruning(folder: Path) -> Path:
    return Path(shutil.copytree(FILES / "nn_pruning" / "topk-blocks", folder / "checkpoint"))


IMAGE = (torch.zeros(1, 3, 8, 8),)
# format: (makes the file or folder, options of the reader)
READERS: dict[str, tuple[Callable[[Path], Path], SourceOptions]] = {
    "l0runtime": (make_own, SourceOptions()),
    "onnx": (make_onnx, SourceOptions()),
    "amlab": (make_amlab, SourceOptions()),
    "l0-arm": (lambda folder: l0_arm.make(folder, True, "mlp").path, SourceOptions()),
    "constrained-sparsity": (lambda folder: constrained_sparsity.make(folder, True, "mlp").path, SourceOptions()),
    "flop": (lambda folder: flop.make(folder, True).path, SourceOptions(flop.build_small, (torch.ones(1, 2).long(),))),
    "cofi": (lambda folder: cofi.make(folder, True).path, SourceOptions()),
    "llm-shearing": (lambda folder: llm_shearing.make(folder, True).path, SourceOptions()),
    "convnet-aig": (lambda folder: convnet_aig.make(folder, True).path, SourceOptions()),
    "nn-pruning": (make_nn_pruning, SourceOptions()),
    "torch-prune": (make_prune, SourceOptions(plain)),
    "torch-ao": (make_ao, SourceOptions(plain)),
    "nni": (make_nni, SourceOptions(nni_net, IMAGE)),
    "pt2": (make_pt2, SourceOptions()),
    "state-dict": (make_state, SourceOptions(plain)),
}


def test_every_format_is_here() -> None:
    assert set(READERS) == set(available_sources())


def read(path: Path, format: str, options: SourceOptions) -> str | None:
    """The error's text, None where a model came out; any other exception is a failure of the test."""
    try:
        file = Candidate(path)
        for source in available_sources().values():
            assert isinstance(source.recognise(file), bool)
        find_source(file, format).load(file, options)
    except L0RuntimeError as error:
        return str(error)
    return None


def damage(data: bytes, rng: random.Random) -> bytes:
    """Some bytes changed, a piece zeroed, cut out or repeated, or the end cut off."""
    place, length = rng.randrange(len(data)), rng.randrange(1, 64)
    kind = rng.randrange(5)
    if kind == 0:
        return data[:place]
    if kind == 1:
        return data[:place] + bytes(length) + data[place + length :]
    if kind == 2:
        return data[:place] + data[place + length :]
    if kind == 3:
        return data[:place] + data[place : place + length] + data[place:]
    changed = bytearray(data)
    for _ in range(length):
        changed[rng.randrange(len(data))] = rng.randrange(256)
    return bytes(changed)


def files_of(path: Path) -> list[Path]:
    return sorted(child for child in path.rglob("*") if child.is_file()) if path.is_dir() else [path]


@pytest.mark.parametrize("format", READERS)
def test_changed_bytes_give_a_clear_error_or_a_model(format: str, tmp_path: Path) -> None:
    make, options = READERS[format]
    path, rng = make(tmp_path), random.Random(format)
    assert read(path, format, options) is None
    torch.manual_seed(0)
    failures = 0
    for _ in range(_BYTES):
        victim = rng.choice(files_of(path))
        whole = victim.read_bytes()
        victim.write_bytes(damage(whole, rng) or b"\0")
        before = sorted(tmp_path.rglob("*"))
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            failures += read(path, format, options) is not None
        assert sorted(tmp_path.rglob("*")) == before
        victim.write_bytes(whole)
    assert failures  # damage is noticed at all


def entries(content: Any, place: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """Paths to everything inside nested dicts and lists."""
    items = content.items() if isinstance(content, Mapping) else enumerate(content) if isinstance(content, list) else ()
    for key, value in items:
        yield (*place, key)
        yield from entries(value, (*place, key))


def change(content: Any, rng: random.Random) -> None:
    """One entry dropped, renamed, replaced, reshaped, retyped or filled with something odd."""
    *parents, key = rng.choice(list(entries(content)))
    holder = content
    for parent in parents:
        holder = holder[parent]
    value = holder[key]
    odd: list[Any] = [None, 3, "text", [], {}, torch.zeros(0), torch.tensor(1.0), torch.ones(2, 3, 4, 5, 6)]
    if isinstance(value, torch.Tensor):
        odd += [value.flatten(), value[None], value.int(), value.half(), value.bool(), value.to(torch.complex64)]
        odd += [value.double() * float("nan"), value * -1, value.float() / 0, torch.cat([value.flatten()] * 2)]
        odd += [torch.empty(1).expand(10**6), value.float().to_sparse()]
    kind = rng.randrange(4)
    if kind == 0:
        del holder[key]
    elif kind == 1 and isinstance(holder, dict):
        renamed = rng.choice([f"{key}.x", f"x.{key}", 7, "\udcff", str(key)[:-1], str(key).rpartition(".")[2]])
        holder[renamed] = holder.pop(key)
    else:
        holder[key] = rng.choice(odd)


@pytest.mark.parametrize("format", [name for name in READERS if name not in ("onnx", "pt2")])
def test_changed_contents_give_a_clear_error_or_a_model(format: str, tmp_path: Path) -> None:
    make, options = READERS[format]
    path, rng = make(tmp_path), random.Random(format)
    stored = [file for file in files_of(path) if file.suffix != ".json" and file.name != "expected.pth"]
    for _ in range(_CONTENTS):
        victim = rng.choice(stored)
        whole = victim.read_bytes()
        if victim.suffix == ".safetensors":
            tensors = safetensors.torch.load(whole)
            change(tensors, rng)
            tensors = {str(k): v for k, v in tensors.items() if isinstance(v, torch.Tensor) and not v.is_sparse}
            with safetensors.safe_open(victim, "pt") as file:
                metadata = file.metadata()
            tensors = {k: v.contiguous().clone() for k, v in tensors.items() if k.isprintable()}
            safetensors.torch.save_file(tensors, victim, metadata)
        else:
            content = torch.load(victim, weights_only=False)  # a file of ours
            change(content, rng)
            torch.save(content, victim)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            read(path, format, options)
        victim.write_bytes(whole)


class Malicious:
    """Unpickling it runs a command that leaves a mark."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> tuple[Any, ...]:
        return os.system, (f"touch {self.mark}",)


@pytest.mark.parametrize("format", [name for name in READERS if name not in ("l0runtime", "onnx", "pt2")])
def test_code_in_a_file_is_refused_and_not_run(format: str, tmp_path: Path) -> None:
    make, options = READERS[format]
    path, mark = make(tmp_path), tmp_path / "mark"
    for victim in files_of(path):
        if victim.suffix == ".json" or victim.name == "expected.pth":
            continue
        whole = victim.read_bytes()
        content = torch.load(victim, weights_only=False)
        content["extra"] = Malicious(mark)
        torch.save(content, victim)
        message = read(path, format, options)
        assert message is not None
        assert "holds objects that are not data (posix.system)" in message
        victim.write_bytes(whole)
    assert not mark.exists()


@pytest.mark.parametrize("format", [name for name in READERS if name not in ("l0runtime", "onnx", "pt2")])
def test_a_zip_bomb_is_refused_before_it_is_unpacked(format: str, tmp_path: Path) -> None:
    make, options = READERS[format]
    path = make(tmp_path)
    victims = [file for file in files_of(path) if file.suffix != ".json" and file.name != "expected.pth"]
    for victim in victims:
        whole = victim.read_bytes()
        with zipfile.ZipFile(victim) as archive:
            members = {info.filename: archive.read(info) for info in archive.infolist()}
        with zipfile.ZipFile(victim, "w", zipfile.ZIP_DEFLATED) as archive:
            for name, data in members.items():
                archive.writestr(name, data + bytes(1_000_000))
        message = read(path, format, options)
        assert message is not None
        assert "a compressed zip archive" in message
        victim.write_bytes(whole)


def test_an_index_that_leads_out_of_the_folder_is_refused(tmp_path: Path) -> None:
    path = make_nn_pruning(tmp_path)
    (path / "pytorch_model.bin").rename(tmp_path / "elsewhere.bin")
    (path / "pytorch_model.bin.index.json").write_text('{"weight_map": {"a": "../elsewhere.bin"}}')
    message = read(path, "nn-pruning", SourceOptions())
    assert message == (
        f"{path / 'pytorch_model.bin.index.json'}: names '../elsewhere.bin', outside of the folder. "
        "Only files beside it are read."
    )
