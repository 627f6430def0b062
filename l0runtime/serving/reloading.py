"""How does a replaced file take over while requests go on?

Files are looked at regularly. One that has changed and come to rest is loaded and tried beside the revision in use;
only if it is fit, and has the same tensors, does it answer from the next batch on. Until then, and for ever if it is
unfit, the old revision answers: it lives in memory and needs its file no more.
"""

from __future__ import annotations

import asyncio

from l0runtime.errors import L0RuntimeError
from l0runtime.serving.logs import EventLog
from l0runtime.serving.models import ModelRepository, ServedModel
from l0runtime.serving.options import ServeOptions
from l0runtime.serving.revision import FileState, load_revision


class Reloader:
    """Watches the files of a repository."""

    def __init__(self, repository: ModelRepository, options: ServeOptions, log: EventLog) -> None:
        self._repository, self._options, self._log = repository, options, log
        self._refused: dict[str, FileState] = {}
        self._seen: dict[str, FileState | None] = {}

    async def watch(self) -> None:
        """Look at the files every `reload_s`, until cancelled."""
        while True:
            await asyncio.sleep(self._options.reload_s)
            await self.look()

    async def look(self) -> None:
        """Look once; a file is taken when it looks the same as the last time."""
        for model in self._repository.models.values():
            state = FileState.of(model.path)
            at_rest = state is not None and self._seen.get(model.name) == state
            self._seen[model.name] = state
            if not at_rest or state == model.revision.state or state == self._refused.get(model.name):
                continue
            assert state is not None
            await self._exchange(model, state)

    async def _exchange(self, model: ServedModel, state: FileState) -> None:
        loop = asyncio.get_running_loop()
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
            self._refused[model.name] = state
            model.metrics.reload_refused.inc()
            self._log.error("reload_refused", model=model.name, serves=model.number, reason=refusal)
