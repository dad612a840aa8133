"""Run benchmarks: `python -m benchmarks [decode engine … training] [--quick]`."""

import argparse
import importlib
import sys
from pathlib import Path

from benchmarks.table import update_readme

MODULES = {
    "decode": "benchmarks.decode",
    "engine": "benchmarks.engine",
    "whole-job": "benchmarks.whole_job",
    "scale": "benchmarks.scale",
    "rows": "benchmarks.rows",
    "memory": "benchmarks.memory",
    "training": "benchmarks.training",
    "tuning": "benchmarks.tuning",
    "serving": "benchmarks.serving",
    "demo": "benchmarks.demo",
    "node-scale": "benchmarks.node_scale",
    "nodes": "benchmarks.nodes",
    "nodes-learning": "benchmarks.nodes_learning",
    "captions": "benchmarks.captions",
    "load": "benchmarks.load",
    "chaos": "benchmarks.chaos",
    "vllm": "benchmarks.vllm",
}

_ELSEWHERE = {"vllm"}  # only when asked for: it runs in the environment of `make test-vllm`


def main() -> None:
    given = _parse()
    if given.names == ["table"]:
        update_readme()
        return
    missed = 0
    for name in given.names or [name for name in MODULES if name not in _ELSEWHERE]:
        print(f"{name} …", file=sys.stderr, flush=True)
        benchmark = importlib.import_module(MODULES[name])
        for result in benchmark.run(quick=given.quick, media=given.media):
            print(result, flush=True)
            missed += not result.met
            if not given.quick and not given.media:
                result.write()
    if missed:
        print(f"{missed} goals missed", file=sys.stderr)


def _parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks",
        description="Measure ratios against named baselines, in one run each. Results go to "
        "benchmarks/results/; missed goals are printed and don't change the exit status.",
        epilog="'table' alone writes the results into README.md, between its benchmark markers. "
        "The first run also encodes the test material, once, into .cache/benchmarks/.",
    )
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"{', '.join(MODULES)}; or table")
    quick = "tiny sizes, to see that it runs; ratios mean nothing and no result is written"
    parser.add_argument("--quick", action="store_true", help=quick)
    real = "decode: measure these files instead; no result is written"
    parser.add_argument("--media", type=Path, nargs="+", metavar="FILE", help=real)
    given = parser.parse_args()
    for name in given.names:
        if name not in MODULES and given.names != ["table"]:
            parser.error(f"no benchmark {name!r}; there are {', '.join(MODULES)}")
    if given.media and given.names != ["decode"]:
        parser.error("--media goes with 'decode' alone")
    return given


if __name__ == "__main__":
    main()
