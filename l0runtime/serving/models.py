"""Which models are served, and which revision of each?"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from l0runtime.errors import OptionError
from l0runtime.serving.batching import LoopBatcher
from l0runtime.serving.datatypes import DATATYPES, protocol_shape
from l0runtime.serving.failures import RequestError
from l0runtime.serving.metrics import Metrics
from l0runtime.serving.options import ServeOptions
from l0runtime.serving.request import InferRequest
from l0runtime.serving.revision import Revision, load_revision, same_signature
from l0runtime.session.arrays import Array

_NAME_CHARACTERS = frozenset("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789_.-")


def model_names(arguments: Mapping[str, Path]) -> dict[str, Path]:
    """Names as the addresses of models hold them.

    Raises:
        OptionError: none at all, or a name that an address cannot hold as it is.
    """
    if not arguments:
        raise OptionError("no model given; name at least one .onnx file.")
    for name in arguments:
        if not name or not set(name) <= _NAME_CHARACTERS or name.startswith("."):
            raise OptionError(f"model name '{name}': expected letters, digits, '_', '-' and '.'. Write NAME=FILE.")
    return dict(arguments)


class ServedModel:
    """One model under one name.

    Attributes:
        name, path: of the model.
        number: of the revision in use, 1 for the first; the protocol's version.
        revision: in use.
    """

    def __init__(self, name: str, path: Path, revision: Revision, options: ServeOptions, metrics: Metrics) -> None:
        self.name, self.path = name, path
        self.number = 1
        self.revision = revision
        self.metrics = metrics.of_model(name)
        self.metrics.version.set(self.number)
        limits = options.limits
        self._batcher = LoopBatcher(
            revision,
            self.number,
            batch_rows=limits.batch_rows,
            queue_limit=limits.queue,
            deadline_s=limits.deadline_s,
            on_batch=self.metrics.batch,
        )
        self.metrics.watch_queue(lambda: self._batcher.waiting)

    async def infer(self, request: InferRequest) -> tuple[list[Array], str]:
        """All outputs of the model, in its order, and the version that computed them.

        Raises:
            L0RuntimeError: see `failures`.
        """
        feed, _ = self.revision.session.check(request.feed)
        results, number = await self._batcher.submit(feed, request.timeout_s)
        return results, str(number)

    def exchange(self, revision: Revision) -> str | None:
        """Let another revision answer from the next batch on.

        Returns:
            why not, if its tensors differ from those that clients know; else None.
        """
        difference = same_signature(self.revision.signature, revision.signature)
        if difference is not None:
            return difference
        self.number += 1
        self.revision = revision
        self._batcher.exchange(revision, self.number)
        self.metrics.version.set(self.number)
        return None

    def check_version(self, version: str) -> None:
        """Refuse a request for another version than the one in use.

        Raises:
            RequestError: 404.
        """
        if version and version != str(self.number):
            raise RequestError(
                404, f"model '{self.name}' has no version '{version}' now; it serves version {self.number}."
            )

    def metadata(self) -> dict[str, Any]:
        """The protocol's model metadata."""
        signature = self.revision.signature
        return {
            "name": self.name,
            "versions": [str(self.number)],
            "platform": "onnx_onnxruntime",
            "inputs": [
                {"name": spec.name, "datatype": DATATYPES[spec.dtype], "shape": protocol_shape(spec)}
                for spec in signature.inputs
            ],
            "outputs": [
                {"name": spec.name, "datatype": DATATYPES[spec.dtype], "shape": protocol_shape(spec)}
                for spec in signature.outputs
            ],
        }

    def expire(self) -> None:
        """See `LoopBatcher.expire`."""
        self._batcher.expire()

    def close(self) -> None:
        """See `LoopBatcher.close`."""
        self._batcher.close()


class ModelRepository:
    """All models of a server.

    Attributes:
        is_ready: whether balancers should send requests here; False before the start and while shutting down.
    """

    def __init__(self, models: Mapping[str, ServedModel]) -> None:
        self.models = dict(models)
        self.is_ready = False

    @classmethod
    async def load(cls, paths: Mapping[str, Path], options: ServeOptions, metrics: Metrics) -> ModelRepository:
        """Load every model; all or none.

        Raises:
            L0RuntimeError: a name or a file is unfit.
        """
        names = model_names(paths)
        loop = asyncio.get_running_loop()
        revisions = {
            name: await loop.run_in_executor(None, load_revision, path, options) for name, path in names.items()
        }
        return cls({name: ServedModel(name, names[name], found, options, metrics) for name, found in revisions.items()})

    def find(self, name: str) -> ServedModel:
        """A model by its name.

        Raises:
            RequestError: 404, with the names that there are.
        """
        model = self.models.get(name)
        if model is None:
            raise RequestError(404, f"no model '{name[:80]}'; this server has {', '.join(self.models)}.")
        return model

    async def expire_regularly(self, every_s: float = 0.05) -> None:
        """Answer requests whose time is up, until cancelled."""
        while True:
            await asyncio.sleep(every_s)
            for model in self.models.values():
                model.expire()

    def close(self) -> None:
        """Stop all threads."""
        for model in self.models.values():
            model.close()
