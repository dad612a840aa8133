"""Models on vLLM engines: `ray.serve.llm`'s server, answering what the gateway asks of any model.

Only clips that our own decoder made reach an engine, as JPEG frames: it opens no file and no
address that a request named.
"""

import asyncio
import json
import time
from collections.abc import AsyncIterator, Iterator
from typing import Any, cast

from pydantic import BaseModel
from ray.serve import Application
from ray.serve.llm import LLMConfig, LLMServer, build_llm_deployment

from spark_ray.core.anatomy import Task
from spark_ray.core.logging import get_logger
from spark_ray.core.schema import Clip
from spark_ray.models.frame_captioner import NO_DOWNLOAD
from spark_ray.models.vllm import (
    DEFAULT_PROMPT,
    ENVIRONMENT,
    as_picture,
    as_video,
    engine_settings,
)
from spark_ray.models.weights import SAFETENSORS, resolve_weights
from spark_ray.serving.errors import ApiError
from spark_ray.serving.handles import MESSAGES_ENVIRONMENT
from spark_ray.serving.messages import (
    MOST_MEDIA,
    Decoded,
    ModelFacts,
    Sampling,
    ServedModel,
    Timing,
    Turn,
    Written,
)
from spark_ray.serving.settings import ModelSettings

log = get_logger(__name__)


def vllm_application(name: str, model: ModelSettings, options: dict[str, Any]) -> Application:
    """The deployment of a model; `options` are those of every model's."""
    return build_llm_deployment(
        llm_config(name, model, options),
        deployment_cls=VllmServer,
        bind_kwargs={"settings": model},
        override_serve_options={"name": f"model-{name}"},
    )


def llm_config(name: str, model: ModelSettings, options: dict[str, Any]) -> LLMConfig:
    """What `ray.serve.llm` is told. All GPUs of a replica are on one node, as its weights are."""
    on_gpu = model.num_gpus > 0
    workers = max(1, int(model.num_gpus))
    bundle = {"CPU": model.num_cpus}
    if on_gpu:
        bundle["GPU"] = min(1.0, model.num_gpus)
    engine = engine_settings(
        context_tokens=model.context_tokens,
        cache_bytes=model.cache_bytes,
        most_requests=model.max_batch_size,
        on_gpu=on_gpu,
    )
    if 0 < model.num_gpus < 1:
        engine["gpu_memory_utilization"] = 0.9 * model.num_gpus
    return LLMConfig(
        model_loading_config={"model_id": name, "model_source": model.reference},
        accelerator_config={"kind": "gpu" if on_gpu else "cpu"},
        placement_group_config={"bundles": [bundle] * workers, "strategy": "STRICT_PACK"},
        deployment_config={**options, "ray_actor_options": {"num_cpus": 0}},
        runtime_env={
            "env_vars": {
                **ENVIRONMENT,
                **MESSAGES_ENVIRONMENT,
                "OMP_NUM_THREADS": str(max(1, int(model.num_cpus))),
            }
        },
        engine_kwargs={
            **engine,
            "dtype": "auto" if on_gpu else "float32",
            "tensor_parallel_size": workers,
            "limit_mm_per_prompt": {"image": MOST_MEDIA, "video": MOST_MEDIA},
            # So that a full queue does not look like a dead engine: see `check_health`.
            "scheduling_policy": "priority",
        },
    )


class VllmServer(LLMServer):
    """A replica with an engine."""

    async def __init__(  # type: ignore[misc]  # Serve awaits it
        self, llm_config: LLMConfig, settings: ModelSettings
    ) -> None:
        self._name = llm_config.model_id
        assert settings.reference is not None
        weights = await asyncio.to_thread(
            resolve_weights,
            settings.reference,
            setting="reference",
            revision=None,
            kind=SAFETENSORS,
            instead=NO_DOWNLOAD,
        )
        info = await asyncio.to_thread(weights.info)
        self._served = ServedModel(
            name=self._name, version=info.revision, weights_hash=info.weights_hash
        )
        # So that nothing is fetched behind our back.
        engine: Any = llm_config.get_engine_config()
        engine.hf_model_id = str(weights.folder)
        await super().__init__(llm_config)
        await self.check_health()

    async def check_health(self) -> None:
        """Ask for a real answer, ahead of those that wait."""
        await super().check_health()
        await self.reply([Turn(role="user", parts=["?"])], Sampling(max_tokens=1), priority=-1)

    async def facts(self) -> ModelFacts:
        return ModelFacts(served=self._served)

    async def write(self, decoded: Decoded, task: Task, max_new_tokens: int) -> Written:
        """A caption of a clip: what the model most likely says when asked for one."""
        written = await self.reply(*_for_caption(decoded, task, max_new_tokens))
        return _with_preprocess(written, decoded)

    async def stream(
        self, decoded: Decoded, task: Task, max_new_tokens: int
    ) -> AsyncIterator[str | Written]:
        """As `write`, piece by piece, and at the end the whole."""
        async for piece in self.reply_in_pieces(*_for_caption(decoded, task, max_new_tokens)):
            yield piece if isinstance(piece, str) else _with_preprocess(piece, decoded)

    async def reply(self, turns: list[Turn], sampling: Sampling, priority: int = 0) -> Written:
        """What the model says next.

        Raises:
            ApiError: the conversation is too long, or shows what the model can't see.
        """
        started = time.perf_counter()
        request = _request(self._name, turns, sampling, priority=priority)
        (answer,) = [cast(BaseModel, each) async for each in await self.chat(request)]
        said = answer.model_dump()
        _raise_error(said)
        (choice,) = said["choices"]
        return self._written(
            choice["message"]["content"] or "", choice["finish_reason"], said["usage"], started
        )

    async def reply_in_pieces(
        self, turns: list[Turn], sampling: Sampling
    ) -> AsyncIterator[str | Written]:
        """As `reply`, piece by piece, and at the end the whole."""
        started = time.perf_counter()
        text, finish = "", "stop"
        usage: dict[str, Any] = {}
        async for batch in await self.chat(_request(self._name, turns, sampling, stream=True)):
            piece = ""
            for said in _events(cast(list[Any], batch)):
                usage = said.get("usage") or usage
                for choice in said["choices"]:
                    piece += choice["delta"].get("content") or ""
                    finish = choice["finish_reason"] or finish
            if piece:
                text += piece
                yield piece
        yield self._written(text, finish, usage, started)

    def _written(self, text: str, finish: str, usage: dict[str, Any], started: float) -> Written:
        return Written(
            text=text,
            prompt_tokens=usage.get("prompt_tokens"),
            tokens=usage.get("completion_tokens"),
            finish="length" if finish == "length" else "stop",
            model=self._served,
            # Waiting for the engine is part of this: only the engine knows them apart.
            timing=Timing(model=time.perf_counter() - started),
        )


def _for_caption(decoded: Decoded, task: Task, max_new_tokens: int) -> tuple[list[Turn], Sampling]:
    assert task == "caption", "no other ability is declared"
    turn = Turn(role="user", parts=[decoded.clip, DEFAULT_PROMPT])
    return [turn], Sampling(max_tokens=max_new_tokens, temperature=0)


def _with_preprocess(written: Written, decoded: Decoded) -> Written:
    return written.after(Timing(preprocess=decoded.seconds))


def _request(
    model: str, turns: list[Turn], sampling: Sampling, *, stream: bool = False, priority: int = 0
) -> Any:
    """A conversation in the shape that the engine takes."""
    from ray.serve.llm.openai_api_models import ChatCompletionRequest

    return ChatCompletionRequest(
        model=model,
        messages=[
            {"role": turn.role, "content": [_part(part) for part in turn.parts]} for turn in turns
        ],
        priority=priority,
        stream=stream,
        stream_options={"include_usage": True} if stream else None,
        **sampling.model_dump(exclude_none=True),
    )


def _part(part: str | Clip) -> dict[str, Any]:
    if isinstance(part, str):
        return {"type": "text", "text": part}
    return as_video(part.frames) if part.video else as_picture(part.frames[0])


def _events(batch: list[Any]) -> Iterator[dict[str, Any]]:
    """What the engine's server-sent events hold."""
    for event in batch:
        if not isinstance(event, str):
            _raise_error(event.model_dump())
            continue
        for line in event.splitlines():
            data = line.removeprefix("data: ")
            if data and data != "[DONE]":
                said = json.loads(data)
                _raise_error(said)
                yield said


def _raise_error(said: dict[str, Any]) -> None:
    error = said.get("error")
    if error is None:
        return
    if error["code"] >= 500:
        log.error("engine failed", error=error["message"])
        raise ApiError(
            503, "replica_lost", "the model failed while it answered; try again", retry_after_s=5.0
        )
    raise ApiError(400, "invalid_request", error["message"], param="messages")
