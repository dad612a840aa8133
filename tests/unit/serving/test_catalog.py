"""Names of models in requests, and the versions that they mean."""

import asyncio
import threading
from typing import Any

import pytest

from spark_ray.core.errors import ConfigError, RegistryUnavailable
from spark_ray.serving import catalog as catalog_module
from spark_ray.serving.catalog import Catalog, Target
from spark_ray.serving.errors import ApiError, as_api_error
from spark_ray.serving.settings import ServeSettings

MODELS: dict[str, Any] = {
    "apotheon": {"reference": "models:/apotheon"},
    "mine": {"reference": "/models/mine"},
    "blip": {"backend": "blip"},
    "whisper": {"backend": "whisper", "reference": "tiny"},
}


class Handle:
    def options(self, **options: Any) -> dict[str, Any]:
        return options


def make(monkeypatch: pytest.MonkeyPatch, lifetime_s: float = 60.0) -> tuple[Catalog, list[str]]:
    asked: list[str] = []

    def pin(reference: str, setting: str) -> str:
        asked.append(reference)
        return f"models:/apotheon/{len(asked)}" if "@" in reference else reference

    monkeypatch.setattr(catalog_module, "pinned_reference", pin)
    models = ServeSettings.from_values(models=MODELS).models
    return Catalog(models, {name: Handle() for name in models}, lifetime_s), asked


def find(catalog: Catalog, name: str | None, ability: Any = "caption") -> Target:
    return asyncio.run(catalog.find(name, ability))


def test_an_alias_means_the_version_behind_it(monkeypatch: pytest.MonkeyPatch) -> None:
    catalog, asked = make(monkeypatch)
    assert find(catalog, "apotheon").model == {"multiplexed_model_id": "models:/apotheon/1"}
    assert find(catalog, "apotheon@champion").reference == "models:/apotheon/1"
    assert asked == ["models:/apotheon@champion"], "asked once, and remembered"
    assert find(catalog, "apotheon/7").reference == "models:/apotheon/7"
    assert find(catalog, None).name == "apotheon"


def test_a_promoted_version_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    catalog, _ = make(monkeypatch, lifetime_s=0.0)
    assert find(catalog, "apotheon").reference == "models:/apotheon/1"
    assert find(catalog, "apotheon").reference == "models:/apotheon/2"


def test_a_version_answers_on_while_the_registry_is_gone(monkeypatch: pytest.MonkeyPatch) -> None:
    catalog, _ = make(monkeypatch, lifetime_s=0.0)
    assert find(catalog, "apotheon").reference == "models:/apotheon/1"

    def gone(reference: str, setting: str) -> str:
        raise RegistryUnavailable("its server does not answer")

    monkeypatch.setattr(catalog_module, "pinned_reference", gone)
    assert find(catalog, "apotheon").reference == "models:/apotheon/1"
    with pytest.raises(RegistryUnavailable) as raised:
        find(catalog, "apotheon@candidate")
    refusal = as_api_error(raised.value)
    assert (refusal.status, refusal.code) == (503, "registry_unavailable")
    assert refusal.retry_after_s is not None


def test_a_slow_registry_holds_up_nobody(monkeypatch: pytest.MonkeyPatch) -> None:
    catalog, _ = make(monkeypatch, lifetime_s=0.0)
    assert find(catalog, "apotheon").reference == "models:/apotheon/1"
    asked: list[str] = []
    gone = threading.Event()

    def slow(reference: str, setting: str) -> str:
        asked.append(reference)
        gone.wait(20)
        return "models:/apotheon/2"

    monkeypatch.setattr(catalog_module, "pinned_reference", slow)
    monkeypatch.setattr(catalog_module, "_PATIENCE_S", 0.05)

    async def ask_together() -> list[Target]:
        try:
            wanted = (catalog.find("apotheon", "caption") for _ in range(40))
            found = await asyncio.wait_for(asyncio.gather(*wanted), 10)
        finally:
            gone.set()
        while catalog._looking_up:
            await asyncio.sleep(0.01)
        return [*found, await catalog.find("apotheon", "caption")]

    *meanwhile, afterwards = asyncio.run(ask_together())
    assert {target.reference for target in meanwhile} == {"models:/apotheon/1"}
    assert afterwards.reference == "models:/apotheon/2"
    assert len(asked) == 2, "once by all together, and once afterwards"


def test_folders_and_backends_have_no_versions(monkeypatch: pytest.MonkeyPatch) -> None:
    catalog, _ = make(monkeypatch)
    assert find(catalog, "mine").reference is None
    assert isinstance(find(catalog, "mine").model, Handle), "the replica knows its folder"
    assert isinstance(find(catalog, "blip").model, Handle)
    for name in ("mine@champion", "blip/2"):
        with pytest.raises(ApiError, match="has no versions"):
            find(catalog, name)


@pytest.mark.parametrize("name", ["gpt", "", "../mine", "apotheon@", "apotheon/x", "apotheon/1/2"])
def test_unknown_names_list_the_known(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    catalog, _ = make(monkeypatch)
    with pytest.raises(ApiError, match="apotheon, blip, mine, whisper") as raised:
        find(catalog, name)
    assert raised.value.status == 404


def test_a_model_is_asked_only_for_what_it_can_do(monkeypatch: pytest.MonkeyPatch) -> None:
    catalog, _ = make(monkeypatch)
    with pytest.raises(ApiError, match="choose one of: apotheon, mine, whisper"):
        find(catalog, "blip", "transcribe")
    assert find(catalog, "whisper", "transcribe").reference is None


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"models": {"a": {"backend": "blap"}}}, "blip2"),
        ({"models": {"a": {"backend": "sidecar"}}}, "unknown"),
        ({"models": {"a": {}}}, "needs a reference"),
        ({"models": {"a/b": {"reference": "x"}}}, "models.a/b: must be a name of 1 to 64 letters"),
        ({"job_settings": {"fsp": 3}}, "fps"),
        ({"job_settings": {"output": "/"}}, "unknown"),
        ({"limits": {"max_upload_bytes": 0}}, "greater than 0"),
        ({"portt": 3}, "portt"),
        ({"state": "s3://bucket/state"}, "database_url"),
    ],
)
def test_wrong_settings_are_one_sentence(settings: dict[str, Any], said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        ServeSettings.from_values(**settings)
