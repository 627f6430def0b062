"""How does Triton run the same model? A model repository for it: config.pbtxt, and the model under its version.

Two backends serve the same file: `onnxruntime`, for production, and `python`, a twin of a few lines for tritonservers
that were built without the first (the one in nvidia-pytriton).
"""

from __future__ import annotations

import os
import shutil
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from l0runtime.errors import OptionError, UnsupportedModelError
from l0runtime.onnx_files import external_files
from l0runtime.serving.datatypes import DATATYPES
from l0runtime.serving.options import ServeOptions
from l0runtime.serving.revision import load_revision
from l0runtime.session.specs import TensorSpec

Backend = Literal["onnxruntime", "python"]

# The twin. Triton hands over requests that it has gathered; they share one run, as they would in its own backend.
_PYTHON_MODEL = '''"""Runs model.onnx for Triton's python backend; requests that are given together share one run."""

import os

import numpy as np
import onnxruntime
import triton_python_backend_utils as triton


class TritonPythonModel:
    def initialize(self, args):
        folder = os.path.join(args["model_repository"], args["model_version"])
        options = onnxruntime.SessionOptions()
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        self.session = onnxruntime.InferenceSession(
            os.path.join(folder, "model.onnx"), options, providers={providers}, enable_fallback=0
        )
        self.inputs = [value.name for value in self.session.get_inputs()]
        self.outputs = [value.name for value in self.session.get_outputs()]
        self.batched = {batched}

    def execute(self, requests):
        feeds = [{{n: triton.get_input_tensor_by_name(r, n).as_numpy() for n in self.inputs}} for r in requests]
        shapes = {{tuple(array.shape[1:] for array in feed.values()) for feed in feeds}} if self.batched else set()
        try:
            if self.batched and len(feeds) > 1 and len(shapes) == 1:
                merged = {{name: np.concatenate([feed[name] for feed in feeds]) for name in self.inputs}}
                ends = np.cumsum([len(feed[self.inputs[0]]) for feed in feeds])[:-1]
                parts = [np.split(output, ends) for output in self.session.run(self.outputs, merged)]
                results = list(zip(*parts))
            else:
                results = [self.session.run(self.outputs, feed) for feed in feeds]
        except Exception as error:
            refusal = triton.TritonError(str(error))
            return [triton.InferenceResponse(error=refusal) for _ in requests]
        return [
            triton.InferenceResponse([triton.Tensor(name, array) for name, array in zip(self.outputs, result)])
            for result in results
        ]
'''


@dataclass(frozen=True)
class TritonModel:
    """What was written.

    Attributes:
        folder: of the model in the repository.
        max_batch: rows that Triton merges; 0 if it must not.
        not_merged: why not; None if it may.
        widened: tensors [N] that Triton's clients see as [N, 1], since it has none without a dimension of their own.
    """

    folder: Path
    max_batch: int
    not_merged: str | None
    widened: tuple[str, ...]


def export_triton(
    model: Path,
    repository: Path,
    *,
    name: str | None = None,
    version: int = 1,
    backend: Backend = "onnxruntime",
    device: str = "cuda",
    max_batch: int = 32,
    queue_delay_us: int = 0,
    instances: int = 1,
    threads: int | None = None,
) -> TritonModel:
    """Write a model into a Triton model repository; the model is loaded and tried first.

    Args:
        model: the .onnx file; its external data come along.
        repository: folder of the repository, made if absent.
        name: of the model; the file's without its suffix if None.
        version: refused if the repository has it.
        backend: see this file's docstring.
        device: "cpu" or "cuda": which one is tried here, and which kind of instance is asked for.
        max_batch: rows that Triton may merge, if the model's rows are independent.
        queue_delay_us: how long Triton waits for company; 0 for not at all.
        instances: copies of the model.
        threads: inside an operator; onnxruntime's choice if None.
    Raises:
        OptionError: a name or number without a meaning, or a version that exists.
        L0RuntimeError: the model is unfit; see `load_revision`.
    """
    name = model.stem if name is None else name
    if not name or "/" in name or name.startswith("."):
        raise OptionError(f"model name '{name}': expected the name of a folder.")
    for option, number in (("version", version), ("max_batch", max_batch), ("instances", instances)):
        if number < 1:
            raise OptionError(f"{option} = {number}: expected at least 1.")
    if queue_delay_us < 0:
        raise OptionError(f"queue_delay_us = {queue_delay_us}: expected at least 0.")
    folder = repository / name
    if (folder / str(version)).exists():
        raise OptionError(f"{folder / str(version)}: exists already. Choose another version, or remove it.")
    revision = load_revision(model, ServeOptions(device=device, threads=threads))
    specs = (*revision.signature.inputs, *revision.signature.outputs)
    for spec in specs:
        if spec.dtype == "bfloat16":
            raise UnsupportedModelError(
                f"{model}: '{spec.name}' is bfloat16, for which no Triton has been tried. Cast it in the model, or use "
                "`l0runtime serve`."
            )
    batched = revision.not_merged is None
    rows = max_batch if batched else 0
    config = triton_config(
        name,
        backend,
        revision.signature.inputs,
        revision.signature.outputs,
        max_batch=rows,
        queue_delay_us=queue_delay_us,
        instances=instances,
        gpu=revision.session.device.kind != "cpu",
        threads=threads,
    )
    gpu = revision.session.device.kind != "cpu"
    _write(model, folder, version, config, _python_model(gpu, batched) if backend == "python" else None)
    widened = tuple(spec.name for spec in specs if not _dims(spec, batched=rows > 0))
    return TritonModel(folder, rows, revision.not_merged, widened)


def triton_config(
    name: str,
    backend: Backend,
    inputs: tuple[TensorSpec, ...],
    outputs: tuple[TensorSpec, ...],
    *,
    max_batch: int,
    queue_delay_us: int = 0,
    instances: int = 1,
    gpu: bool = False,
    threads: int | None = None,
) -> str:
    """The text of config.pbtxt.

    Args:
        max_batch: 0 for a model whose requests must not be merged; the first dimension is then written out.
    """
    lines = [f'name: "{name}"', f'backend: "{backend}"', f"max_batch_size: {max_batch}"]
    for kind, specs in (("input", inputs), ("output", outputs)):
        entries = [_tensor(spec, batched=max_batch > 0) for spec in specs]
        lines += [f"{kind} [", ",\n".join(entries), "]"]
    lines.append(
        f"instance_group [\n  {{\n    count: {instances}\n    kind: {'KIND_GPU' if gpu else 'KIND_CPU'}\n  }}\n]"
    )
    if max_batch:
        lines.append(f"dynamic_batching {{\n  max_queue_delay_microseconds: {queue_delay_us}\n}}")
    if threads is not None and backend == "onnxruntime":
        lines.append(f'parameters {{\n  key: "intra_op_thread_count"\n  value {{ string_value: "{threads}" }}\n}}')
    lines += _warm_up(inputs, max_batch)
    return "\n".join(lines) + "\n"


def _dims(spec: TensorSpec, *, batched: bool) -> list[int]:
    shape = spec.shape[1:] if batched else spec.shape
    return [dim if isinstance(dim, int) else -1 for dim in shape]


def _type(spec: TensorSpec) -> str:
    return f"TYPE_{DATATYPES[spec.dtype]}"


def _tensor(spec: TensorSpec, *, batched: bool) -> str:
    dims = _dims(spec, batched=batched)
    text = (
        f'  {{\n    name: "{spec.name}"\n    data_type: {_type(spec)}\n    dims: [ {", ".join(map(str, dims or [1]))} ]'
    )
    if not dims:  # Triton has no tensor without dimensions: one of length 1, taken away again
        text += "\n    reshape: { shape: [ ] }"
    return text + "\n  }"


def _warm_up(inputs: tuple[TensorSpec, ...], max_batch: int) -> list[str]:
    """Zeros of one row, and of a full batch; none where a dimension besides the rows is dynamic."""
    if any(dim == -1 for spec in inputs for dim in _dims(spec, batched=max_batch > 0)):
        return []
    lines = []
    for rows in sorted({1, max_batch}) if max_batch else (0,):
        values = "\n".join(
            f'  inputs {{\n    key: "{spec.name}"\n    value {{\n      data_type: {_type(spec)}\n'
            f"      dims: [ {', '.join(map(str, _dims(spec, batched=max_batch > 0) or [1]))} ]\n"
            f"      zero_data: true\n    }}\n  }}"
            for spec in inputs
        )
        lines.append(f'model_warmup {{\n  name: "rows_{rows or 1}"\n  batch_size: {rows}\n{values}\n}}')
    return lines


def _python_model(gpu: bool, batched: bool) -> str:
    providers = ["CUDAExecutionProvider"] if gpu else ["CPUExecutionProvider"]
    return _PYTHON_MODEL.format(providers=providers, batched=batched)


def _write(model: Path, folder: Path, version: int, config: str, python_model: str | None) -> None:
    """All files of a version appear at once; the configuration last, and also at once."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        made = Path(tempfile.mkdtemp(prefix=".writing-", dir=folder))
    except OSError as error:
        raise OptionError(f"{folder}: cannot be written ({error.strerror}).") from error
    try:
        made.chmod(0o755)
        shutil.copyfile(model, made / "model.onnx")
        for data in external_files(model):
            target = made / data
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(model.parent / data, target)
        if python_model is not None:
            (made / "model.py").write_text(python_model, encoding="utf-8")
        (made / "config.pbtxt").write_text(config, encoding="utf-8")
        os.replace(made / "config.pbtxt", folder / "config.pbtxt")
        os.replace(made, folder / str(version))
    except BaseException:
        shutil.rmtree(made, ignore_errors=True)
        raise
