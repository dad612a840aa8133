"""Tune Apotheon's training as a Ray job.

ray job submit --working-dir . -- python jobs/tune.py jobs/tune_apotheon.yaml
"""

import sys

from spark_ray.cli import run

if __name__ == "__main__":
    sys.exit(run("spark_ray.training.search.commands:tune", sys.argv[1:]))
