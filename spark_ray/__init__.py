"""SparkRay: video to dataset, training, tuning, serving and review, as one Ray application."""

__version__ = "0.1.0"
