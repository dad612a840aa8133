"""Evaluate a model as a Ray job.

ray job submit --working-dir . -- python jobs/evaluate.py --model models:/apotheon@champion
    --dataset s3://sets/x@v1 --output-dir s3://evaluations/champion
"""

import sys

from spark_ray.cli import run

if __name__ == "__main__":
    sys.exit(run("spark_ray.evaluation.commands:evaluate", sys.argv[1:]))
