"""`l0runtime export`: hand a compact model to Triton, or to Kubernetes."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path

import click

from l0runtime.errors import OptionError


@click.group()
def command() -> None:
    """Hand a compact model to servers that run on many machines."""


@command.command()
@click.argument("model", type=click.Path(path_type=Path))
@click.option("--repo", type=click.Path(path_type=Path), required=True, help="Model repository; made if absent.")
@click.option("--name", help="The model's name; its file's without suffix by default.")
@click.option("--version", type=int, default=1, show_default=True, help="Must not exist in the repository.")
@click.option(
    "--backend",
    type=click.Choice(["onnxruntime", "python"]),
    default="onnxruntime",
    show_default=True,
    help="python: for a tritonserver that was built without the other.",
)
@click.option("--device", default="cuda", show_default=True, help="cuda or cpu: tried here, and asked for there.")
@click.option("--max-batch", default=32, show_default=True, help="Rows that Triton may merge.")
@click.option("--queue-delay-us", default=0, show_default=True, help="How long Triton waits for company.")
@click.option("--instances", default=1, show_default=True, help="Copies of the model.")
@click.option("--threads", type=int, help="Threads inside an operator; onnxruntime's choice by default.")
def triton(
    model: Path,
    repo: Path,
    name: str | None,
    version: int,
    backend: str,
    device: str,
    max_batch: int,
    queue_delay_us: int,
    instances: int,
    threads: int | None,
) -> None:
    """Write MODEL into a Triton model repository, after trying it.

    Triton merges requests only if the model's rows proved independent.
    """
    from l0runtime.serving.triton import export_triton

    written = export_triton(
        model,
        repo,
        name=name,
        version=version,
        backend="python" if backend == "python" else "onnxruntime",
        device=device,
        max_batch=max_batch,
        queue_delay_us=queue_delay_us,
        instances=instances,
        threads=threads,
    )
    click.echo(f"{written.folder}: version {version}, backend {backend}, max_batch_size {written.max_batch}")
    if written.not_merged is not None:
        click.echo(f"requests are not merged: {written.not_merged}", err=True)
    if written.widened:
        extra = "[N, 1]" if written.max_batch else "[1]"
        click.echo(f"Triton's clients send and get {', '.join(written.widened)} with the shape {extra}", err=True)


@command.command()
@click.argument("model", type=click.Path(path_type=Path))
@click.option("--storage-uri", required=True, help="The Triton repository, where the cluster reads it.")
@click.option("--output", type=click.Path(path_type=Path), required=True, help="The YAML file to write.")
@click.option("--name", help="The service's name; the model's file name by default.")
@click.option("--min-replicas", default=1, show_default=True, help="0 lets it sleep without requests.")
@click.option("--max-replicas", default=1, show_default=True, help="At most so many.")
@click.option("--concurrency", default=32, show_default=True, help="Requests in work at which a replica is added.")
@click.option("--cpu", default="1", show_default=True, help="For each replica.")
@click.option("--memory", default="2Gi", show_default=True, help="For each replica.")
@click.option("--gpus", default=0, show_default=True, help="For each replica.")
@click.option("--triton", "triton_tag", default="25.03-py3", show_default=True, help="Tag of the Triton image.")
def kserve(
    model: Path,
    storage_uri: str,
    output: Path,
    name: str | None,
    min_replicas: int,
    max_replicas: int,
    concurrency: int,
    cpu: str,
    memory: str,
    gpus: int,
    triton_tag: str,
) -> None:
    """Write the KServe InferenceService that runs the Triton repository of MODEL on Kubernetes."""
    from l0runtime.onnx_files import check_model_path
    from l0runtime.serving.kserve import ServiceOptions, inference_service

    check_model_path(model)
    options = ServiceOptions(
        name or model.stem.lower().replace("_", "-"),
        storage_uri,
        min_replicas=min_replicas,
        max_replicas=max_replicas,
        concurrency=concurrency,
        cpu=cpu,
        memory=memory,
        gpus=gpus,
        triton=triton_tag,
    )
    _write(output, inference_service(options))
    click.echo(f"{output}: InferenceService {options.name}; start it with: kubectl apply -f {output}")


def _write(path: Path, text: str) -> None:
    """Write under another name first, so that no half-written file is ever seen."""
    try:
        handle, temporary = tempfile.mkstemp(suffix=".yaml", dir=path.parent)
    except OSError as error:
        raise OptionError(f"--output {path}: cannot be written ({error.strerror}).") from error
    try:
        with os.fdopen(handle, "w", encoding="utf-8") as file:
            file.write(text)
        os.replace(temporary, path)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise
