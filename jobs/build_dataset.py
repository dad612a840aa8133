"""Build a dataset as a Ray job.

ray job submit --working-dir . -- python jobs/build_dataset.py --input s3://raw --output s3://sets/x
"""

import sys

from spark_ray.cli import run

if __name__ == "__main__":
    sys.exit(run("spark_ray.datasets.commands:build", sys.argv[1:]))
