"""The wire between a trial and its training run.

Ray Train's controller loads this module, so it must not need the model's.
"""

from typing import Any

from ray.train import Checkpoint, UserCallback
from ray.util.queue import Queue

from spark_ray.training.failures import StoppedEarly

GO_ON, END = "go on", "end"


class Reporter(UserCallback):
    """Tells the trial of each checkpoint, and waits for its word whether to go on.

    Ray's own `TuneReportCallback` does not wait, so a run trains on while it is judged; and its
    last report may meet that of the trial itself, and both wait for each other for ever.
    """

    def __init__(self, reports: Queue, answers: Queue) -> None:
        self.reports, self.answers = reports, answers

    def after_report(
        self,
        run_context: Any,
        metrics: list[dict[str, Any]],
        checkpoint: Checkpoint | None,
    ) -> None:
        self.reports.put(metrics[0])
        if self.answers.get() == END:
            raise StoppedEarly("the study has ended this trial")
