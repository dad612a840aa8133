"""Which model a request means: names to deployments, and aliases to the versions they stand for."""

import asyncio
import re
import time
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

from spark_ray.core.errors import RegistryUnavailable
from spark_ray.core.logging import get_logger
from spark_ray.models.registered import SCHEME, pinned_reference
from spark_ray.serving.errors import ApiError
from spark_ray.serving.settings import MODEL_NAME, Ability, ModelSettings

log = get_logger(__name__)

DEFAULT_ALIAS = "champion"

_LOOK_UPS = 4
_PATIENCE_S = 1.0
_FIRST_PATIENCE_S = 60.0

_NAME = re.compile(rf"(?P<base>{MODEL_NAME})(?:@(?P<alias>[\w-]{{1,64}})|/(?P<version>\d{{1,9}}))?")


def base_name(name: str) -> str:
    """The name of a model without the alias or version behind it."""
    return name.partition("@")[0].partition("/")[0]


@dataclass(frozen=True)
class Target:
    """A model that will answer: what to call, and the version of a registered one.

    `model` asks for that version, which is loaded where it is not yet.
    """

    name: str
    reference: str | None
    model: Any


class Catalog:
    """The models of a server, by the names that requests give them."""

    def __init__(
        self,
        models: Mapping[str, ModelSettings],
        handles: Mapping[str, Any],
        alias_lifetime_s: float,
    ) -> None:
        self._models, self._handles = models, handles
        self._alias_lifetime_s = alias_lifetime_s
        self._pinned: dict[str, tuple[float, str]] = {}
        # A registry that is gone takes a quarter of a minute to say so, and threads are few: those
        # that look up keys and assets must not be held by it.
        self._threads = ThreadPoolExecutor(_LOOK_UPS, thread_name_prefix="registry")
        self._looking_up: dict[str, asyncio.Future[str]] = {}
        self._asking: dict[tuple[str, str], Any] = {}

    def names(self, ability: Ability | None = None) -> list[str]:
        return sorted(
            name
            for name, model in self._models.items()
            if ability is None or ability in model.abilities
        )

    def settings(self, name: str) -> ModelSettings:
        """Of the model of a name, whichever version that means."""
        return self._models[base_name(name)]

    def abilities(self, name: str) -> tuple[Ability, ...]:
        """What the model of a name can do, whichever version that means."""
        return self.settings(name).abilities

    async def find(self, name: str | None, ability: Ability) -> Target:
        """The model of that name, or the first that can do it.

        Raises:
            ApiError: there is no such model, or it can't do this; it lists those that can.
        """
        able = self.names(ability)
        if name is None:
            if not able:
                raise ApiError(501, "no_model", f"no model here can {ability}")
            name = able[0]
        match = _NAME.fullmatch(name)
        base = match["base"] if match else ""
        if match is None or base not in self._models:
            raise ApiError(
                404,
                "model_not_found",
                f"there is no model {name!r}; choose one of: {', '.join(self.names())}",
                param="model",
            )
        if base not in able:
            raise ApiError(
                400,
                "model_lacks_ability",
                f"model {base!r} can't {ability}; choose one of: {', '.join(able) or 'none'}",
                param="model",
            )
        settings = self._models[base]
        reference = settings.reference
        if reference is None or not reference.startswith(SCHEME):
            self._refuse_version(match, name)
            return Target(base, None, self._handles[base])
        wanted = (
            f"{reference}/{match['version']}"
            if match["version"]
            else f"{reference}@{match['alias'] or DEFAULT_ALIAS}"
        )
        pinned = await self._pin(wanted)
        return Target(name, pinned, self._asking_for(base, pinned))

    def _asking_for(self, base: str, pinned: str) -> Any:
        """The handle of that version; making one costs as much as a small request."""
        key = (base, pinned)
        if key not in self._asking:
            self._asking[key] = self._handles[base].options(multiplexed_model_id=pinned)
        return self._asking[key]

    def _refuse_version(self, match: re.Match[str], name: str) -> None:
        if match["alias"] or match["version"]:
            raise ApiError(
                404,
                "model_not_found",
                f"{name!r}: this model is no registered one and has no versions; "
                f"write {match['base']!r}",
                param="model",
            )

    async def _pin(self, reference: str) -> str:
        """The version behind an alias, asked for again after a while: that is how a new one comes.

        Requests that are on their way keep the version that they began with. While the registry
        can't be asked, or is slow, the version that it named last goes on answering.

        Raises:
            ModelError: there is no such version.
            RegistryUnavailable: it does not answer, and has named none before.
        """
        known = self._pinned.get(reference)
        if known is not None and known[0] > time.monotonic():
            return known[1]
        looking_up = self._look_up(reference)
        await asyncio.wait(
            [looking_up], timeout=_FIRST_PATIENCE_S if known is None else _PATIENCE_S
        )
        error: BaseException | None = RegistryUnavailable(f"model: {reference}: no answer yet")
        if looking_up.done():
            error = looking_up.exception()
        if error is None:
            pinned = looking_up.result()
        elif known is not None and isinstance(error, RegistryUnavailable):
            log.warning("registry unavailable", reference=reference, error=str(error))
            pinned = known[1]
        else:
            raise error
        self._pinned[reference] = (time.monotonic() + self._alias_lifetime_s, pinned)
        return pinned

    def _look_up(self, reference: str) -> "asyncio.Future[str]":
        """One question to the registry, for all who want to know the same at the time."""
        if reference in self._looking_up:
            return self._looking_up[reference]
        looking_up = asyncio.get_running_loop().run_in_executor(
            self._threads, pinned_reference, reference, "model"
        )
        self._looking_up[reference] = looking_up

        def ended(looked_up: "asyncio.Future[str]") -> None:
            del self._looking_up[reference]
            if not looked_up.cancelled():
                looked_up.exception()  # or asyncio complains where nobody has waited so long

        looking_up.add_done_callback(ended)
        return looking_up
