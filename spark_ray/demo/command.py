"""`spark-ray demo`, from drawing to describing."""

import shutil
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console

from spark_ray.core.storage import Folder
from spark_ray.datasets.layout import REPORT
from spark_ray.demo.config import DemoConfig
from spark_ray.evaluation.results import REPORT as EVALUATION_REPORT


def main(arguments: Sequence[str]) -> int:
    """`spark-ray demo`: see `DemoConfig`."""
    config = DemoConfig.from_command_line(arguments, "spark-ray demo")
    # Imported here: Ray alone takes two seconds, too long for a `--help`.
    from spark_ray.demo.world import build_shapes, compare, draw_clips, print_agreement

    started = time.monotonic()
    folder, console = Path(config.folder), Console()
    Folder(config.folder).create()
    truths = draw_clips(folder, config.clips, config, config.seed)
    dataset = build_shapes(folder, config.clips)
    agreement = compare(folder, dataset, truths)
    print_agreement(agreement, console)
    if not agreement.whole:
        return 1
    answers_agree = _learn(config, dataset, console) if config.train else True
    print(f"  dataset      {dataset.location}/{REPORT}")
    print(f"  look inside  spark-ray data inspect {dataset.location}")
    if shutil.which("spark-ray") is None:
        print(f"  these need   source {Path(sys.prefix)}/bin/activate")
    print(f"done in {time.monotonic() - started:.0f} s")
    return 0 if answers_agree else 1


def _learn(config: DemoConfig, dataset: Folder, console: Console) -> bool:
    """Train, evaluate, describe and serve; whether the server says what the dataset job said."""
    # Imported here: torch and MLflow take seconds that `--no-train` need not wait.
    from spark_ray.demo import learning
    from spark_ray.demo.asking import ask_over_http
    from spark_ray.demo.world import draw_clips
    from spark_ray.evaluation.commands import say_result

    trained = learning.train_tiny(config, dataset)
    evaluation = learning.evaluate_tiny(config, dataset, trained.model)
    say_result(evaluation, with_pdf=False)
    new = draw_clips(Path(config.folder) / "new", config.new_clips, config, config.seed + 1)
    described = learning.describe_new(config, trained.model)
    learning.print_described(described.version, new, console)
    agree = ask_over_http(config, trained.model, described.version, console)
    print(
        f"  model        {trained.model}/README.md\n"
        f"  evaluation   {evaluation.output.location}/{EVALUATION_REPORT}\n"
        f"  described    {described.version.location}/{REPORT}\n"
        f"  runs         mlflow ui --backend-store-uri sqlite:///{config.folder}/mlflow.db\n"
        "  serve it     export RAY_AUTH_MODE=token; ray start --head && "
        "serve deploy serve_configs/local.yaml"
    )
    return agree
