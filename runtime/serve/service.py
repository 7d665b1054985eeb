"""Service as request.py has it, on rank 0: requests go to the dispatcher, models to loading."""

from __future__ import annotations

from collections.abc import Mapping

from .catalog import Catalog
from .dispatcher import Dispatcher
from .loading import Loading
from .request import ModelInfo, ModelStatistics


class ModelService:
    """What the HTTP front and the clients ask."""

    def __init__(self, catalog: Catalog, dispatcher: Dispatcher, loading: Loading) -> None:
        self._catalog = catalog
        self._dispatcher = dispatcher
        self._loading = loading
        self.infer = dispatcher.infer
        self.status = dispatcher.status
        self.load = loading.load
        self.unload = loading.unload
        self.index = loading.index

    @property
    def ready(self) -> bool:
        """Whether a worker can serve, and the server is not about to end."""
        return self._dispatcher.watch.ready and not self._dispatcher.draining

    def model(self, name: str, version: str = "") -> ModelInfo:
        """One of them, loaded; UnknownModel."""
        return self._loading.info(self._catalog.find(name, version))

    def datatypes(self, name: str, version: str = "") -> Mapping[str, str]:
        """Of its outputs; UnknownModel."""
        return self._catalog.find(name, version).datatypes

    def statistics(self, name: str = "", version: str = "") -> Mapping[tuple[str, str], ModelStatistics]:
        """By (model, version); UnknownModel."""
        if name:
            self._catalog.find(name, version)
        return {
            (served.version.model, served.version.title): self._dispatcher.tally.model(served.name)
            for served in self._catalog.all()
            if name in ("", served.version.model) and version in ("", served.version.title)
        }
