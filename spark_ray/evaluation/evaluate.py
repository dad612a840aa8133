"""The evaluation job: choose clips, let the model answer, judge, write results and report."""

import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.util import find_spec

import pyarrow as pa
import pyarrow.compute as pc

from spark_ray.core.errors import DatasetError, MissingDependency, SparkRayError
from spark_ray.core.provenance import code_version, fingerprint, git_commit, now_iso
from spark_ray.core.storage import Folder
from spark_ray.core.wording import counted
from spark_ray.datasets.layout import MANIFEST, is_published
from spark_ray.datasets.reading import load_metadata
from spark_ray.datasets.samples import SampleIndex, load_index
from spark_ray.datasets.session import ray_session
from spark_ray.evaluation.config import EvaluateConfig
from spark_ray.evaluation.metrics import by_skill
from spark_ray.evaluation.predict import predict
from spark_ray.evaluation.results import (
    PDF,
    PREDICTIONS,
    RESULTS,
    ClipCounts,
    DatasetInfo,
    Failure,
    Prediction,
    Results,
    load_results,
)
from spark_ray.evaluation.slices import sources_of
from spark_ray.evaluation.text import has_words
from spark_ray.models.held_out import record_held_out
from spark_ray.models.registered import SCHEME as REGISTERED
from spark_ray.models.registered import find_registered, of_version
from spark_ray.models.training_record import HeldOut
from spark_ray.models.weights import check_reference

_PACKAGES = {
    "torch": "models",
    "transformers": "models",
    "jiwer": "train",
    "nltk": "train",
    "rouge_score": "train",
    "sacrebleu": "train",
}


@dataclass(frozen=True)
class Evaluation:
    """A finished evaluation, and the folder that it was written to.

    `card_updated`: its metrics stand in the model's card.
    """

    results: Results
    output: Folder
    card_updated: bool


@dataclass(frozen=True)
class _Chosen:
    """Clips to ask about. Their `table` has a column `source`, and null where no reference is."""

    clips: SampleIndex
    asked: int


def evaluate(config: EvaluateConfig) -> Evaluation:
    """Evaluate a model on a dataset; writes predictions, results and report.

    Raises:
        ConfigError: a setting is wrong.
        DatasetError: there is no such dataset, none of its clips has a reference or can be read, or
            a run to compare with is none.
        ModelError: the model can't be loaded.
        MissingDependency: a package that counts is not installed.
        StorageError: the results can't be written.
    """
    started = time.monotonic()
    _require_packages()
    config = config.located()
    assert config.output_dir is not None
    output = Folder(config.output_dir)
    earlier = [load_results(location) for location in config.compare]
    # Before Ray starts: an actor would say the same half a minute later.
    check_reference(config.model, "model")
    model = config.model
    if model.startswith(REGISTERED):
        # An alias may move before the last actor has looked.
        _, version = find_registered(model, "model")
        model = of_version(model, version)
    chosen = _choose_clips(config)
    _announce(config, chosen)
    with ray_session(config):
        answers = predict(config.model_copy(update={"model": model}), chosen.clips)

    # Imported here: nltk takes seconds, and the scores are not needed before.
    from spark_ray.evaluation.captions import bleu_signature
    from spark_ray.evaluation.scoring import judge, score_all

    predictions, failures = judge(chosen.clips.table, answers.table)
    if not predictions:
        raise DatasetError(
            f"{chosen.clips.location}: none of {len(failures)} clips could be read; of the first: "
            f"{failures[0].message}"
        )
    overall, slices = score_all(predictions)
    results = Results(
        name=output.location.rstrip("/").rpartition("/")[2],
        created=now_iso(),
        code_version=code_version(),
        git_commit=git_commit(),
        settings=config.model_dump(mode="json"),
        model=answers.model,
        dataset=_dataset_info(config, chosen.clips),
        clips=_count(chosen, predictions, failures),
        clips_hash=_clips_hash(predictions),
        seconds=round(time.monotonic() - started, 3),
        bleu_signature=bleu_signature([p.caption for p in predictions if p.caption is not None]),
        overall=overall,
        slices=slices,
        failures=failures,
    )
    _write(config, output, chosen.clips, results, predictions, earlier)
    return Evaluation(results, output, _tell_model(config, results))


def _require_packages() -> None:
    """Say it before the model has worked for hours."""
    for package, extra in _PACKAGES.items():
        if find_spec(package) is None:
            raise MissingDependency(package.replace("_", "-"), extra, "evaluation")


def _choose_clips(config: EvaluateConfig) -> _Chosen:
    """The clips of the split, or the first of them, that have any reference.

    Raises:
        DatasetError: there are none.
    """
    index = load_index(config.dataset)
    sources = sources_of(index.table["source_path"].to_pylist())
    table = index.table.append_column("source", pa.array(sources, pa.string()))
    whole = SampleIndex(index.version, index.manifest, table, index.broken)
    asked = whole.split(config.split).table.slice(0, config.limit)
    for name in ("caption", "transcript"):
        texts = [text if has_words(text) else None for text in asked[name].to_pylist()]
        asked = asked.set_column(
            asked.schema.get_field_index(name), name, pa.array(texts, pa.string())
        )
    judged = asked.filter(pc.or_(asked["caption"].is_valid(), asked["transcript"].is_valid()))
    if not judged.num_rows:
        raise DatasetError(
            f"{index.location}: none of {asked.num_rows} clips (split {config.split}) has a "
            "caption or a transcript to compare with; build the dataset with --caption-backend or "
            "--transcription-backend"
        )
    clips = SampleIndex(index.version, index.manifest, judged, index.broken)
    return _Chosen(clips, asked.num_rows)


def _announce(config: EvaluateConfig, chosen: _Chosen) -> None:
    """Say what is going to happen, and with what."""
    table = chosen.clips.table
    captions, transcripts = (
        table.num_rows - table[name].null_count for name in ("caption", "transcript")
    )
    search = f"{config.num_beams} beams" if config.num_beams > 1 else "greedy"
    print(
        f"Evaluating {config.model}\n"
        f"  dataset      {chosen.clips.location}\n"
        f"  clips        {chosen.asked} of split {config.split}: {captions} with a caption, "
        f"{transcripts} with a transcript\n"
        f"  writing      {search}, up to {config.max_new_tokens} tokens\n"
        f"  workers      {config.workers}, {counted(config.batch_size, 'clip')} at a time\n"
        f"  output       {config.output_dir}",
        file=sys.stderr,
    )
    for location in config.compare:
        print(f"  compared to  {location}", file=sys.stderr)


def _dataset_info(config: EvaluateConfig, clips: SampleIndex) -> DatasetInfo:
    name, version = clips.manifest, None
    if clips.manifest == MANIFEST and is_published(clips.version):
        metadata = load_metadata(clips.version)
        name, version = metadata["name"], metadata["version"]
    return DatasetInfo(
        reference=config.dataset,
        location=clips.location,
        name=name,
        version=version,
        manifest_sha256=clips.manifest_sha256(),
        split=config.split,
    )


def _count(
    chosen: _Chosen, predictions: Sequence[Prediction], failures: Sequence[Failure]
) -> ClipCounts:
    return ClipCounts(
        asked=chosen.asked,
        evaluated=len(predictions),
        failed=len(failures),
        without_reference=chosen.asked - chosen.clips.table.num_rows,
    )


def _clips_hash(predictions: Sequence[Prediction]) -> str:
    """The same for the same clips with the same references, whatever their order."""
    questions = sorted(
        (
            p.id,
            p.caption.reference if p.caption else None,
            p.transcript.reference if p.transcript else None,
        )
        for p in predictions
    )
    return fingerprint({"clips": questions})


def _tell_model(config: EvaluateConfig, results: Results) -> bool:
    """Put metrics of clips that the model has not learned from into its card."""
    if config.split not in ("validation", "test") or config.limit is not None:
        return False
    held_out = HeldOut(
        split=config.split, clips=results.clips.evaluated, metrics=by_skill(results.overall)
    )
    model = config.model
    if model.startswith(REGISTERED):
        # The version that answered: the alias may have moved on meanwhile.
        assert results.model.revision is not None
        model = of_version(model, results.model.revision)
    try:
        return record_held_out(model, held_out, results.dataset.manifest_sha256)
    except (OSError, SparkRayError) as error:
        # The numbers are written already, and are what was asked for.
        print(f"  careful      the model's card stays as it was: {error}", file=sys.stderr)
        return False


def _write(
    config: EvaluateConfig,
    output: Folder,
    clips: SampleIndex,
    results: Results,
    predictions: Sequence[Prediction],
    earlier: Sequence[Results],
) -> None:
    """Everything into the output folder; the numbers first, since they took the longest."""
    from spark_ray.evaluation.comparison import compare
    from spark_ray.evaluation.examples import choose_examples
    from spark_ray.evaluation.pdf import write_pdf
    from spark_ray.evaluation.plots import comparison_plot, make_plots
    from spark_ray.evaluation.report import ReportParts, write_report

    with output.writer(PREDICTIONS) as file:
        for prediction in predictions:
            file.write(prediction.model_dump_json().encode() + b"\n")
    output.write(RESULTS, results.model_dump_json(indent=2).encode() + b"\n")

    rows = {row["id"]: row for row in clips.table.to_pylist()}
    comparison = compare(results, earlier)
    parts = ReportParts(
        results=results,
        plots=make_plots(predictions, results.slices["label"]),
        examples=choose_examples(predictions, clips.version, rows),
        comparison=comparison,
        comparison_plot=comparison_plot(comparison) if comparison else None,
    )
    write_report(output, parts)
    if config.pdf:
        write_pdf(output, parts)
    else:
        output.remove(PDF)  # an earlier run's, with other numbers
