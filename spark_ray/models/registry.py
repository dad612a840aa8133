"""Backends by name, imported only when somebody asks for one.

A backend's module may import torch at its top: the registry knows where each name lives and imports
it on the first `get`, whereupon the module registers its class with the decorator. Code outside the
house registers in the same way, by being imported.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from importlib import import_module
from typing import Generic, TypeVar

from spark_ray.core.errors import MissingDependency, unknown_choice

Options = TypeVar("Options")
Model = TypeVar("Model")
Factory = TypeVar("Factory", bound=Callable[..., object])


@dataclass(frozen=True)
class BackendModule:
    """Where a backend lives, and the extra of `spark-ray` that installs what it imports."""

    module: str
    extra: str


class Registry(Generic[Options, Model]):
    """Backends of one kind: callables from their options to a model without weights yet.

    `setting` is the configuration field that chooses among them; errors name it.
    """

    def __init__(self, setting: str, known: Mapping[str, BackendModule]) -> None:
        self.setting = setting
        self._known = dict(known)
        self._factories: dict[str, Callable[[Options], Model]] = {}

    def register(self, name: str) -> Callable[[Factory], Factory]:
        """Class decorator: `name` in the configuration means the decorated backend."""

        def add(factory: Factory) -> Factory:
            self._factories[name] = factory  # type: ignore[assignment]
            return factory

        return add

    @property
    def names(self) -> list[str]:
        return sorted({*self._known, *self._factories})

    def get(self, name: str) -> Callable[[Options], Model]:
        """The backend of that name, its module imported.

        Raises:
            ConfigError: no backend has that name; the message lists those that exist.
            MissingDependency: its module needs a package that is not installed.
        """
        if name not in self._factories:
            if name not in self._known:
                raise unknown_choice(self.setting, name, self.names)
            backend = self._known[name]
            try:
                import_module(backend.module)
            except ModuleNotFoundError as error:
                package = (error.name or "").partition(".")[0]
                if package in {"", __name__.partition(".")[0]}:
                    raise
                needed_for = f"{self.setting}={name}"
                raise MissingDependency(package, backend.extra, needed_for) from error
        return self._factories[name]
