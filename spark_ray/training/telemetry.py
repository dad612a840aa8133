"""What a rank tells operators about its steps, through Ray's agents to Prometheus."""

from spark_ray.monitoring import metrics
from spark_ray.training.meter import StepRecord


def report_step(run: str, rank: int, device: str, record: StepRecord) -> None:
    """Record a step. Rank 0 speaks for the run; what differs between ranks, each tells itself."""
    where = {"run": run, "rank": str(rank)}
    metrics.TRAIN_DATA_WAIT.set(record.data_wait_s / record.step_s, **where)
    metrics.TRAIN_MEMORY.set(record.memory_bytes, **where, device=device)
    if record.mfu is not None:
        metrics.TRAIN_MFU.set(record.mfu, **where)
    if rank:
        return
    metrics.TRAIN_STEPS.inc(run=run)
    metrics.TRAIN_STEP_SECONDS.observe(record.step_s, run=run)
    metrics.TRAIN_SAMPLES.inc(record.samples_per_s * record.step_s, run=run)
    metrics.TRAIN_TOKENS.inc(record.tokens_per_s * record.step_s, run=run)
    if not record.outcome.applied:
        metrics.TRAIN_SKIPPED.inc(run=run)
    for head, loss in record.losses.items():
        metrics.TRAIN_LOSS.set(loss, run=run, head=head.removesuffix("_loss"))


def report_validation(run: str, loss: float) -> None:
    """Record the mean loss of the validation split."""
    metrics.TRAIN_LOSS.set(loss, run=run, head="validation")


def report_checkpoint(run: str, seconds: float) -> None:
    """Record how long training stood still for a checkpoint."""
    metrics.CHECKPOINT_SECONDS.observe(seconds, run=run)
