"""Train Apotheon as a Ray job.

ray job submit --working-dir . -- python jobs/train_apotheon.py --config jobs/train_apotheon.yaml
"""

import sys

from spark_ray.cli import run

if __name__ == "__main__":
    sys.exit(run("spark_ray.training.commands:train_apotheon", sys.argv[1:]))
