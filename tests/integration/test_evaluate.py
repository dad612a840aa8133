"""An evaluation for real: a tiny random model, actors on the cluster, results on disk."""

import json
import shutil
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from trained import record

from spark_ray.cli import run
from spark_ray.core.schema import Clip, Transcript
from spark_ray.datasets.layout import audio_name, frame_name
from spark_ray.datasets.samples import load_index, read_clip
from spark_ray.evaluation.config import EvaluateConfig
from spark_ray.evaluation.evaluate import Evaluation, evaluate
from spark_ray.evaluation.results import Results
from spark_ray.evaluation.retrieval import retrieve
from spark_ray.media.audio_codec import encode_audio
from spark_ray.models.model_card import write_model_card
from spark_ray.models.training_record import TrainingRecord

sys.path.append(str(Path(__file__).parents[1] / "unit" / "datasets"))
from fake_version import jpeg, make_clip, write_version

COLOURS = ("red", "green", "blue")
TOKENS = 8
COMMAND = "spark_ray.evaluation.commands:evaluate"


def some_clip(number: int) -> Clip:
    """Some have two frames and some four, one has no sound, one no transcript, two one caption."""
    colour = COLOURS[number % 3]
    caption = f"a {colour} circle moves to place {number % 9}"
    clip = make_clip(number, source=f"/films/{number}.mp4", caption=caption, dropped=())
    frames = 2 + 2 * (number % 2)
    clip.frames = [jpeg(10 * number + i, size=96) for i in range(frames)]
    clip.samples = [clip.samples[0].model_copy(update={"time": 0.5 * i}) for i in range(frames)]
    clip.label = colour
    clip.transcript = Transcript(text=f"we count to {number}") if number != 2 else None
    if number != 1:
        times = np.arange(16_000 * (1 + number % 2)) / 16_000
        tone = np.sin(2 * np.pi * 110 * (number + 1) * times)
        clip.audio = encode_audio(np.round(9000 * tone).astype(np.int16), "flac")
    return clip


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Ten clips, of which one has a frame that is no picture, and another lost its frames."""
    clips = [some_clip(number) for number in range(10)]
    root = tmp_path_factory.mktemp("sets") / "films"
    version, _ = write_version(root, clips)
    for clip in clips:
        if clip.audio is not None:
            version.write(audio_name(clip.clip_id, "flac"), clip.audio)
    version.write(frame_name(clips[4].clip_id, 1), b"no picture")
    version.remove(frame_name(clips[6].clip_id, 2))
    manifest = (root / "v1/manifest.jsonl").read_text().splitlines(keepends=True)
    (root / "v1/backwards.jsonl").write_text("".join(reversed(manifest)))
    return root


@pytest.fixture(scope="module")
def checkpoint(dataset: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    import torch

    from spark_ray.apotheon import ApotheonModel
    from spark_ray.apotheon.sizes import processor_for, tiny
    from spark_ray.apotheon.tokenization import train_tokenizer

    torch.set_num_threads(1)
    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("models") / "tiny"
    texts = [row["caption"] for row in load_index(str(dataset)).table.to_pylist()]
    tokenizer = train_tokenizer(texts, 320)
    config = tiny(tokenizer)
    # At the usual 0.02 a random model writes the same whatever it sees, and nothing would show.
    for part in (config, config.vision_config, config.text_config):
        part.initializer_range = 0.3
    config.audio_config.init_std = 0.3
    ApotheonModel(config).save_pretrained(folder)
    processor_for(config, tokenizer, 8).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def first(cluster: str, dataset: Path, checkpoint: Path) -> tuple[Path, Results]:
    """All clips, by two actors."""
    output = dataset.parent / "first"
    config = EvaluateConfig.from_values(
        model=str(checkpoint),
        dataset=f"{dataset}@v1",
        split="all",
        output_dir=str(output),
        workers=2,
        batch_size=3,
        max_new_tokens=TOKENS,
    )
    return output, evaluate(config).results


def test_the_models_card_gets_the_metrics_of_clips_that_it_has_not_learned_from(
    cluster: str, dataset: Path, checkpoint: Path, tmp_path: Path
) -> None:
    model = tmp_path / "model"
    shutil.copytree(checkpoint, model)
    learned_from = record().dataset.model_copy(
        update={"manifest_sha256": load_index(str(dataset)).manifest_sha256()}
    )
    record().model_copy(update={"dataset": learned_from}).write(model)
    write_model_card(model)

    def run(**settings: object) -> Evaluation:
        return evaluate(
            EvaluateConfig.from_values(
                model=str(model),
                dataset=f"{dataset}@v1",
                output_dir=str(tmp_path / "evaluation"),
                max_new_tokens=TOKENS,
                **settings,
            )
        )

    assert not run(split="all", limit=2).card_updated
    assert TrainingRecord.read(model).held_out is None
    done = run(split="test")
    assert done.card_updated
    held_out = TrainingRecord.read(model).held_out
    assert held_out is not None
    assert (held_out.split, held_out.clips) == ("test", done.results.clips.evaluated)
    captions = done.results.overall.captions
    assert captions is not None
    assert held_out.metrics["caption"] == captions.model_dump(exclude={"clips"})
    assert "On the test split" in (model / "README.md").read_text()


def predictions(output: Path) -> dict[str, dict[str, Any]]:
    lines = [json.loads(line) for line in (output / "predictions.jsonl").open()]
    for line in lines:
        del line["seconds"]
    return {line["id"]: line for line in lines}


def test_actors_answer_as_one_process_does(
    first: tuple[Path, Results], dataset: Path, checkpoint: Path
) -> None:
    from spark_ray.models.apotheon import Apotheon

    output, _ = first
    found = predictions(output)
    index = load_index(str(dataset))
    model = Apotheon.load(str(checkpoint), setting="model", device="cpu")
    rows = [row for row in index.table.to_pylist() if row["id"] in found]
    clip_vectors, caption_vectors = [], []
    for row in rows:
        content = read_clip(index.version, row)
        clip = model.prepare(content.frames, row["frame_times"], content.audio)
        answer = found[row["id"]]
        assert answer["caption"]["predicted"] == model.write([clip], "caption", TOKENS)[0]
        assert answer["caption"]["reference"] == row["caption"]
        if row["transcript"] is None:
            assert answer["transcript"] is None
        else:
            assert answer["transcript"]["predicted"] == model.write([clip], "transcript", TOKENS)[0]
        clip_vectors.append(model.embed_clips([clip])[0])
        caption_vectors.append(model.embed_texts([row["caption"]])[0])
    captions = [row["caption"] for row in rows]
    ranks = retrieve(captions, np.stack(clip_vectors), np.stack(caption_vectors))
    assert [found[row["id"]]["retrieval"] for row in rows] == [rank.model_dump() for rank in ranks]
    assert len({answer["caption"]["predicted"] for answer in found.values()}) == len(found)


def test_bad_clips_are_counted_and_listed(first: tuple[Path, Results]) -> None:
    output, results = first
    assert results.clips.model_dump() == {
        "asked": 10,
        "evaluated": 8,
        "failed": 2,
        "without_reference": 0,
    }
    failures = {failure.source_path: failure for failure in results.failures}
    assert set(failures) == {"/films/4.mp4", "/films/6.mp4"}
    assert failures["/films/4.mp4"].error == "CorruptMedia"
    assert "is gone or unreadable" in failures["/films/6.mp4"].message
    assert results.overall.captions is not None
    assert results.overall.captions.clips == 8
    assert results.overall.transcripts is not None
    assert results.overall.transcripts.clips == 7
    assert results.overall.clip_to_text is not None
    assert results.overall.clip_to_text.candidates == 7  # clips 0 and 9 share a caption
    html = (output / "report.html").read_text()
    assert "2 of 10 clips could not be read or decoded" in html
    assert html.count("data:image/jpeg;base64,") > 16
    assert results.model.weights_hash in html


def test_order_and_batches_change_nothing(
    first: tuple[Path, Results],
    dataset: Path,
    checkpoint: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Backwards, one actor, other batches, a part of the clips; by the command line."""
    output = dataset.parent / "second"
    arguments = {
        "--model": checkpoint,
        "--dataset": dataset / "v1/backwards.jsonl",
        "--split": "all",
        "--limit": 7,
        "--batch-size": 5,
        "--max-new-tokens": TOKENS,
        "--output-dir": output,
        "--compare": first[0],
    }
    flags = [str(part) for pair in arguments.items() for part in pair]
    assert run(COMMAND, [*flags, "--pdf"]) == 0

    everything, part = predictions(first[0]), predictions(output)
    lines = (dataset / "v1/backwards.jsonl").read_text().splitlines()[:7]
    bad = {failure.id for failure in first[1].failures}
    assert list(part) == [
        id_ for id_ in (json.loads(line)["id"] for line in lines) if id_ not in bad
    ]
    for clip, answer in part.items():
        for task in ("caption", "transcript"):
            mine, theirs = answer[task], everything[clip][task]
            assert (mine and mine["predicted"]) == (theirs and theirs["predicted"])

    printed = capsys.readouterr()
    assert "Captions" in printed.out
    assert "Clip → text" in printed.out
    assert f"  report       {output}/report.html" in printed.out
    assert printed.out.splitlines()[-1].startswith(f"evaluated {len(part)} of 7 clips in ")
    assert f"Evaluating {checkpoint}\n" in printed.err
    html = (output / "report.html").read_text()
    assert "second (this run)" in html
    assert "Not the same questions: first judged" in html
    assert (output / "report.pdf").read_bytes().startswith(b"%PDF-")


def test_wrong_input_is_one_sentence(
    cluster: str, dataset: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def error(**settings: object) -> str:
        flags = [f"--{name}={value}" for name, value in settings.items()]
        assert run(COMMAND, [*flags, f"--output-dir={tmp_path / 'out'}"]) == 2
        return capsys.readouterr().err.splitlines()[-1]

    assert error(model="our/m", dataset=tmp_path / "none").startswith(
        f"error: {tmp_path / 'none'}: no such published dataset"
    )
    assert error(model="our/m", dataset=dataset, compare=tmp_path).startswith(
        f"error: compare: {tmp_path}/results.json: can't read it: it does not exist; give the"
    )
    # Before Ray starts, not from an actor half a minute later.
    assert error(model=tmp_path, dataset=dataset, split="all") == (
        f"error: model: {tmp_path} holds no config.json, so it is no model"
    )
    assert not (tmp_path / "out").exists()
