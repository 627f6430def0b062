"""Which format is this file, and how does it become a gated model?

Each format is a `Source` in a file of its own: it recognises a file, and loads it as a `GatedModel` (a torch module in
eval mode with example inputs, an exported program, or an ONNX file). Others add formats without touching this
package: an entry point in the group `l0runtime.sources` that names a `Source` object,

    [project.entry-points."l0runtime.sources"]
    my-format = "my_package.my_format:SOURCE"
"""

from __future__ import annotations

import importlib
import json
import zipfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from importlib.metadata import entry_points
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, runtime_checkable

from l0runtime.errors import L0RuntimeError, ModelFileError, OptionError, UnsupportedModelError

if TYPE_CHECKING:
    from torch.export import ExportedProgram
    from torch.nn import Module

# what any file of parameters is; a format that says more about a file goes before it
_LEAST_SPECIFIC = "state-dict"
_LARGEST_HEADER_BYTES = 100_000_000  # as in the safetensors format

ENTRY_POINT_GROUP = "l0runtime.sources"

# format name: the `Source` object
BUILT_IN: dict[str, str] = {
    "l0runtime": "converters.formats.own_checkpoint:SOURCE",
    "onnx": "converters.formats.onnx_file:SOURCE",
    "amlab": "converters.formats.amlab:SOURCE",
    "l0-arm": "converters.formats.l0_arm:SOURCE",
    "constrained-sparsity": "converters.formats.constrained_sparsity:SOURCE",
    "flop": "converters.formats.flop:SOURCE",
    "cofi": "converters.formats.cofi:SOURCE",
    "llm-shearing": "converters.formats.llm_shearing:SOURCE",
    "convnet-aig": "converters.formats.convnet_aig:SOURCE",
    "nn-pruning": "converters.formats.nn_pruning:SOURCE",
    "torch-prune": "converters.formats.torch_prune:SOURCE",
    "torch-ao": "converters.formats.torch_ao:SOURCE",
    "nni": "converters.formats.nni:SOURCE",
    "pt2": "converters.formats.torch_export:SOURCE",
    "state-dict": "converters.formats.state_dict:SOURCE",
}


@dataclass(frozen=True)
class GateGroup:
    """The gates of one layer, as its evaluation rule leaves them.

    Args:
        layer: qualified name of the gated layer.
        units: number of gates.
        kept: gates that are not exactly 0.
        rule: evaluation rule that decides it ("paper", "median", "top-k"), None where the format fixes the values.
    """

    layer: str
    units: int
    kept: int
    rule: str | None = None


@dataclass(frozen=True)
class GatedModel:
    """A trained gated model, ready for the pipeline; exactly one of module, program and onnx_path is set.

    Args:
        format: name of the source that loaded it.
        module: torch module in eval mode, whose gates are then constants.
        example_inputs: its positional inputs, batch first; `example_kwargs` its keyword inputs.
        program: a torch.export program, its example inputs and dynamic axes included.
        onnx_path: an ONNX file.
        gates: gate groups that the format knows of; an ONNX file knows none.
        notes: remarks for the report, e.g. which of two parameter sets was taken.
    """

    format: str
    module: Module | None = None
    example_inputs: tuple[Any, ...] = ()
    example_kwargs: Mapping[str, Any] = field(default_factory=dict)
    program: ExportedProgram | None = None
    onnx_path: Path | None = None
    gates: tuple[GateGroup, ...] = ()
    notes: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        given = [kind for kind in ("module", "program", "onnx_path") if getattr(self, kind) is not None]
        if len(given) != 1:
            raise UnsupportedModelError(
                f"source {self.format!r}: set exactly one of module, program and onnx_path; found "
                f"{' and '.join(given) or 'none'}."
            )


@dataclass(frozen=True)
class SourceOptions:
    """What the caller says about a file that the file itself does not say.

    Args:
        model: builds the architecture for bare parameters: called without arguments, it returns the module, or the
            pair (module, example_inputs). A string names it as `package.module:factory`.
        example_inputs: positional inputs of the module, batch first; needed where the format does not know them.
        extra: options of one format, e.g. {"parameters": "last"}.
    """

    model: str | Callable[[], Any] | None = None
    example_inputs: Sequence[Any] | None = None
    extra: Mapping[str, str] = field(default_factory=dict)


class Candidate:
    """A file or directory, offered to the sources in turn; what is read of it is read once."""

    def __init__(self, path: str | Path) -> None:
        """Raises ModelFileError: nothing is there, or the file is empty."""
        self.path = Path(path)
        self.torch_error: L0RuntimeError | None = None
        if not self.path.exists():
            raise ModelFileError(f"{self.path}: no such file. Give the path of a checkpoint or of an ONNX file.")
        if self.path.is_file() and not self.head:
            raise ModelFileError(f"{self.path}: the file is empty. Expected a checkpoint or an ONNX file.")

    @cached_property
    def head(self) -> bytes:
        """The first 64 bytes; empty for a directory."""
        if not self.path.is_file():
            return b""
        with self.path.open("rb") as file:
            return file.read(64)

    @property
    def is_safetensors(self) -> bool:
        """Starts like a safetensors file: an 8-byte length, then a JSON object."""
        return self.head[8:9] == b"{"

    @property
    def is_zip(self) -> bool:
        """Starts like a zip archive, which torch.save and torch.export.save write."""
        return self.head.startswith(b"PK\x03\x04")

    @cached_property
    def torch_content(self) -> Any:
        """What torch.save wrote, read without executing anything; None for other files, see `torch_error`."""
        if not (self.is_zip or self.head[:1] == b"\x80") or any("/archive_format" in name for name in self.members):
            return None  # no pickle, or a torch.export archive, which has a reader of its own
        from converters.torch_files import read_torch_file

        try:
            return read_torch_file(self.path)
        except L0RuntimeError as error:
            self.torch_error = error
            return None

    @cached_property
    def header(self) -> dict[str, Any]:
        """The JSON header of a safetensors file; empty for other files and where it is not readable.

        Read by itself, so that a file truncated behind it is still recognised and its reader can say so.
        """
        size = int.from_bytes(self.head[:8], "little")
        if not self.is_safetensors or size > _LARGEST_HEADER_BYTES:
            return {}
        with self.path.open("rb") as file:
            file.seek(8)
            text = file.read(size)
        try:
            header = json.loads(text)
        except ValueError:
            return {}
        return header if isinstance(header, dict) else {}

    @property
    def metadata(self) -> dict[str, str]:
        """The metadata of a safetensors header."""
        entries = self.header.get("__metadata__")
        return {str(key): str(value) for key, value in entries.items()} if isinstance(entries, dict) else {}

    @cached_property
    def members(self) -> frozenset[str]:
        """Names of the files in a zip archive; empty for other files."""
        if not self.is_zip:
            return frozenset()
        try:
            with zipfile.ZipFile(self.path) as archive:
                return frozenset(archive.namelist())
        except Exception:  # a damaged archive fails in many ways inside zipfile; its reader says what is wrong
            return frozenset()


@runtime_checkable
class Source(Protocol):
    """One checkpoint format."""

    name: str
    """Short name, shown in reports and accepted by `--format`."""
    description: str
    """What it reads, in one line."""

    def recognise(self, file: Candidate) -> bool:
        """Whether this format's `load` is the right one; cheap, never raises for a foreign or damaged file."""
        ...

    def load(self, file: Candidate, options: SourceOptions) -> GatedModel:
        """Read the file without executing anything in it.

        Raises:
            ModelFileError: truncated, damaged, or from a newer version.
            UnsupportedModelError: readable, but not convertible.
        """
        ...


def available_sources() -> dict[str, Source]:
    """All formats by name: the built-in ones, then those that installed packages add, by name.

    Raises:
        OptionError: an installed package takes a name that is taken.
        UnsupportedModelError: an entry point names something that is not a `Source`.
    """
    sources: dict[str, Source] = {}
    for name, location in BUILT_IN.items():
        module, attribute = location.split(":")
        sources[name] = getattr(importlib.import_module(module), attribute)
    for point in sorted(entry_points(group=ENTRY_POINT_GROUP), key=lambda point: point.name):
        if BUILT_IN.get(point.name) == point.value:
            continue
        if point.name in sources:
            raise OptionError(
                f"entry point {point.name!r} of {point.value}: another source has that name. Rename one of them."
            )
        found = point.load()
        if not isinstance(found, Source):
            raise UnsupportedModelError(
                f"entry point {point.name!r} of {point.value}: found {type(found).__name__}, expected an object with "
                "name, description, recognise and load (converters.sources.Source)."
            )
        sources[point.name] = found
    return sources


def find_source(file: Candidate, name: str | None = None) -> Source:
    """The source that recognises a file, or the one called `name`.

    Raises:
        OptionError: no source has that name.
        ModelFileError: no source recognises the file, or more than one does.
    """
    sources = available_sources()
    if name is not None:
        if name not in sources:
            raise OptionError(f"format {name!r} is unknown; known are {', '.join(sources)}.")
        return sources[name]
    matches = [source for source in sources.values() if source.recognise(file)]
    matches = [source for source in matches if source.name != _LEAST_SPECIFIC] or matches
    if not matches:
        if file.torch_content is None and file.torch_error is not None:
            raise file.torch_error
        known = "; ".join(f"{source.name} ({source.description})" for source in sources.values())
        raise ModelFileError(f"{file.path}: {_describe(file)}, which no source recognises. Known: {known}.")
    if len(matches) > 1:
        names = ", ".join(source.name for source in matches)
        raise ModelFileError(f"{file.path}: {names} all recognise this file. Choose one with the option format.")
    return matches[0]


def load_source(path: str | Path, options: SourceOptions, name: str | None = None) -> GatedModel:
    """Read a checkpoint or ONNX file as a gated model; see `find_source` and `Source.load` for the errors."""
    file = Candidate(path)
    source = find_source(file, name)
    if source.name != "onnx" or not options.extra:
        return source.load(file, options)
    raise OptionError(f"{file.path}: an ONNX file takes no source options; found {', '.join(options.extra)}.")


def resolve_model_factory(model: str | Callable[[], Any]) -> Callable[[], Any]:
    """The factory that `package.module:factory` names; a callable is returned as it is.

    Raises:
        OptionError: malformed, the module cannot be imported, or it has no such callable.
    """
    if not isinstance(model, str):
        return model
    module_name, separator, attribute = model.partition(":")
    if not separator or not module_name or not attribute:
        raise OptionError(f"model {model!r}: expected package.module:factory, e.g. my_package.models:resnet20.")
    try:
        module = importlib.import_module(module_name)
    except L0RuntimeError:
        raise
    except Exception as error:  # importing runs the user's own code, which may fail in any way
        raise OptionError(
            f"model {model!r}: importing {module_name} failed ({type(error).__name__}: {error}). "
            "Is it installed, or its folder in PYTHONPATH?"
        ) from error
    factory = getattr(module, attribute, None)
    if not callable(factory):
        raise OptionError(f"model {model!r}: {module_name} has no callable {attribute!r}.")
    return factory  # type: ignore[no-any-return]


def _describe(file: Candidate) -> str:
    if file.path.is_dir():
        return "a directory"
    if file.is_safetensors:
        return "a safetensors file" + (f" with metadata {sorted(file.metadata)}" if file.metadata else "")
    if file.is_zip:
        return "a zip archive"
    if file.head[:1] == b"\x80":
        return "a pickle"
    return f"starts with bytes {file.head[:8].hex(' ')}"
