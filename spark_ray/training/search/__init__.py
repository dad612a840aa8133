"""Ray Tune over the training job: studies, their trials, their reports."""
