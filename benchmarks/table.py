"""The README's table, from the results of the last full run."""

import json
import re
from pathlib import Path
from typing import Any

from benchmarks.harness import RESULTS, ROOT

_BEGIN, _END = "<!-- benchmarks -->", "<!-- /benchmarks -->"


def update_readme(readme: Path = ROOT / "README.md", results: Path = RESULTS) -> None:
    """Put the table between the markers of the README."""
    text = readme.read_text()
    if _BEGIN not in text or _END not in text:
        raise SystemExit(f"{readme.name} lacks the markers {_BEGIN} and {_END}")
    body = f"{_BEGIN}\n{render(load(results))}\n{_END}"
    block = re.compile(f"{re.escape(_BEGIN)}.*?{re.escape(_END)}", re.DOTALL)
    readme.write_text(block.sub(lambda _: body, text, count=1))


def load(folder: Path = RESULTS) -> list[dict[str, Any]]:
    return [json.loads(path.read_text()) for path in sorted(folder.glob("*.json"))]


def render(results: list[dict[str, Any]]) -> str:
    """Markdown: one line a result, and the machines that they were measured on."""
    lines = ["| benchmark | × | baseline | spread | goal | |", "|---|---|---|---|---|---|"]
    for result in results:
        low, high = result["spread"]
        spread = f"{low:.2f} – {high:.2f}" if low != high else "one run"
        goal, verdict = "none", ""
        if result["goal"] is not None:
            goal = f"≤ {result['goal']:.2f}"
            verdict = "met" if result["ratio"] <= result["goal"] else "**missed**"
        lines.append(
            f"| {result['name']} | {result['ratio']:.2f} | {result['baseline']} | {spread} "
            f"| {goal} | {verdict} |"
        )
    machines = sorted({_machine(result["machine"]) for result in results})
    return "\n".join([*lines, "", *(f"Measured on {machine}." for machine in machines)])


def _machine(facts: dict[str, Any]) -> str:
    return f"{facts['cores']} cores of {facts['cpu']}, {facts['memory_gib']:g} GiB, Python " + str(
        facts["python"]
    )
