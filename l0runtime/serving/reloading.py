"""How does a replaced file take over while requests go on?

Files are looked at regularly. One that has changed and come to rest is loaded and tried beside the revision in use;
only if it is fit, and has the same tensors, does it answer from the next batch on. Until then, and for ever if it is
unfit, the old revision answers: it lives in memory and needs its file no more.
"""

from __future__ import annotations

import asyncio
from pathlib import Path

from l0runtime.errors import L0RuntimeError
from l0runtime.onnx_files import external_files
from l0runtime.serving.logs import EventLog
from l0runtime.serving.models import ModelRepository, ServedModel
from l0runtime.serving.options import ServeOptions
from l0runtime.serving.revision import load_revision
from l0runtime.serving.snapshot import FileState


class Reloader:
    """Watches the files of a repository."""

    def __init__(self, repository: ModelRepository, options: ServeOptions, log: EventLog) -> None:
        self._repository, self._options, self._log = repository, options, log
        self._refused: dict[str, FileState] = {}
        self._seen: dict[str, FileState | None] = {}
        self._data: dict[str, tuple[str, ...]] = {}  # data files of the file that was tried last

    async def watch(self) -> None:
        """Look at the files every `reload_s`, until cancelled."""
        while True:
            await asyncio.sleep(self._options.reload_s)
            await self.look()

    async def look(self) -> None:
        """Look once; a file is taken when it looks the same as the last time."""
        for model in self._repository.models.values():
            state = FileState.of(model.path, self._data.get(model.name, model.revision.data))
            at_rest = state is not None and self._seen.get(model.name) == state
            self._seen[model.name] = state
            known = (model.revision.state, self._refused.get(model.name))
            if at_rest and state not in known:
                await self._exchange(model)

    async def _exchange(self, model: ServedModel) -> None:
        loop = asyncio.get_running_loop()
        self._data[model.name] = await loop.run_in_executor(None, _data_files, model.path)
        state = FileState.of(model.path, self._data[model.name])
        try:
            revision = await loop.run_in_executor(None, load_revision, model.path, self._options)
        except L0RuntimeError as error:
            refusal: str | None = str(error)
        except Exception as error:  # whatever it is, the old revision goes on answering
            refusal = f"{type(error).__name__}: {error}"
        else:
            refusal = model.exchange(revision)
            if refusal is not None:
                refusal = f"{refusal}. Serve it under another name."
        if refusal is None:
            model.metrics.reload_taken.inc()
            self._log.info("model_reloaded", model=model.name, version=model.number, path=str(model.path))
        else:
            if state is not None:
                self._refused[model.name] = state
            model.metrics.reload_refused.inc()
            self._log.error("reload_refused", model=model.name, serves=model.number, reason=refusal)


def _data_files(path: Path) -> tuple[str, ...]:
    """Names of a model's data files; none where it cannot be read, for whatever reason: loading it will say."""
    try:
        return tuple(external_files(path))
    except Exception:
        return ()
