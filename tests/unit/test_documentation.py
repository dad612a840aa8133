"""What the documentation tells people to type is what the commands understand.

Every `spark-ray …` line goes through the command's own parser and configuration class, so that a
flag that was renamed, or a choice that is gone, fails here.
"""

import ast
import importlib
import os
import re
import shlex
import subprocess
import sys
from collections.abc import Iterator, Sequence
from itertools import takewhile
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from nested_models import nested
from packaging.requirements import Requirement

from spark_ray import cli
from spark_ray.core.config import ArgumentParser, JobConfig
from spark_ray.datasets.config import BuildConfig
from spark_ray.monitoring.metrics import declared
from spark_ray.serving.proxy import PROXY_ENVIRONMENT
from spark_ray.training.curriculum import Stage

ROOT = Path(__file__).parents[2]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
_FENCE = re.compile(r"^```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
# Of others; what they are given is not ours to check, but that it names files of ours is.
OTHERS = {"source", "mlflow", "prometheus", "chmod"}


class Line(NamedTuple):
    """A command of the documentation, and the page that it stands on."""

    page: str
    text: str


def blocks(page: Path, language: str) -> Iterator[str]:
    for found, text in _FENCE.findall(page.read_text()):
        if found == language:
            yield text


def lines(language: str = "sh") -> list[Line]:
    return [
        Line(str(page.relative_to(ROOT)), text.strip())
        for page in PAGES
        for block in blocks(page, language)
        for text in block.replace("\\\n", " ").splitlines()
        if text.strip() and not text.lstrip().startswith("#")
    ]


class Understood(BaseException):
    """Raised in place of the work, once a command has read its arguments; nothing catches it."""


@pytest.fixture
def parsing_only(monkeypatch: pytest.MonkeyPatch) -> None:
    """Commands read and check their arguments, and go no further."""
    for name in [name for name in os.environ if name.startswith("SPARK_RAY_")]:
        monkeypatch.delenv(name)
    monkeypatch.chdir(ROOT)
    monkeypatch.setattr(cli.signal, "signal", lambda *_: None)
    read_config = JobConfig.from_command_line.__func__
    parse_args = ArgumentParser.parse_args

    def config(cls: type[JobConfig], arguments: Sequence[str], program: str) -> None:
        with monkeypatch.context() as inside:
            inside.setattr(ArgumentParser, "parse_args", parse_args)
            read_config(cls, arguments, program)
        raise Understood

    def parsed(parser: ArgumentParser, *arguments: Any) -> None:
        parse_args(parser, *arguments)
        raise Understood

    monkeypatch.setattr(JobConfig, "from_command_line", classmethod(config))
    monkeypatch.setattr(ArgumentParser, "parse_args", parsed)


def understand(words: list[str]) -> None:
    """Check one command; `words` are as a shell hands them over."""
    while re.fullmatch(r"[A-Z_]+=.*", words[0]):
        words = words[1:]
    program, *arguments = takewhile(lambda word: word != ">", words)
    if program == "spark-ray":
        with pytest.raises(Understood):
            assert cli.main(arguments) == 0, f"{shlex.join(words)}: is not understood"
    elif program == "ray":
        understand_ray(arguments)
    elif program == "export":
        understand_export(arguments)
    elif program == "serve":
        assert arguments == ["shutdown", "--yes"] or arguments[0] == "deploy"
        if arguments[0] == "deploy":
            assert (ROOT / arguments[1]).is_file()
    elif program == "make":
        assert re.search(rf"^{arguments[0]}:", (ROOT / "Makefile").read_text(), re.MULTILINE)
    elif program == "pip":
        understand_pip(arguments)
    elif program == "curl":
        understand_curl(arguments)
    else:
        assert program in OTHERS, f"{program}: no test knows this command"


def understand_export(arguments: list[str]) -> None:
    (setting,) = arguments
    name, _, value = setting.partition("=")
    if name in PROXY_ENVIRONMENT:
        assert value == PROXY_ENVIRONMENT[name]
    else:
        assert setting == "RAY_AUTH_MODE=token"


def understand_ray(arguments: list[str]) -> None:
    if arguments[:2] != ["job", "submit"]:
        known = ("start --head", "status", "logs", "get-auth-token --generate")
        assert " ".join(arguments) in known
        return
    python, script, *settings = arguments[arguments.index("--") + 1 :]
    assert python == "python"
    (function,) = re.findall(r'run\("([^"]+)"', (ROOT / script).read_text())
    with pytest.raises(Understood):
        assert cli.run(function, settings) == 0, f"{script}: does not understand {settings}"


def understand_pip(arguments: list[str]) -> None:
    for flag in ("-c", "-r"):
        if flag in arguments:
            assert (ROOT / arguments[arguments.index(flag) + 1]).is_file()
    for extras in re.findall(r"\.\[([^\]]*)\]", " ".join(arguments)):
        known = re.findall(r"^([a-z0-9-]+) = \[", (ROOT / "pyproject.toml").read_text(), re.M)
        assert Requirement(f"spark-ray[{extras}]").extras <= set(known)


def understand_curl(arguments: list[str]) -> None:
    (url,) = [word for word in arguments if word.startswith("http")]
    assert "/" + url.split("/", 3)[3] in routes()


def routes() -> set[str]:
    from spark_ray.serving.gateway import ROUTES

    return {route.path for module in ROUTES for route in module.router.routes}


def commands_in(text: str) -> list[list[str]]:
    """The words of a line, and those of a `$(…)` in it, without comments."""
    inner = re.search(r"^\w+=\$\((.*)\)$", text)
    return [shlex.split(inner[1] if inner else text, comments=True)]


@pytest.mark.parametrize("line", lines(), ids=lambda line: f"{line.page}:{line.text[:60]}")
@pytest.mark.usefixtures("parsing_only")
def test_a_command_is_understood(line: Line) -> None:
    for words in commands_in(line.text):
        understand(words)


@pytest.mark.usefixtures("parsing_only")
def test_a_wrong_command_is_not(capsys: pytest.CaptureFixture[str]) -> None:
    for wrong in (
        "spark-ray data build --input x --output y --fsp 2",
        "spark-ray data export datasets/x --format tar",
        "spark-ray data bild",
        "spark-ray keys create --name a --scopes everything",
        "ray job submit -- python jobs/evaluate.py --modle x",
        "curl http://127.0.0.1:8000/v1/captoins",
    ):
        with pytest.raises(BaseException) as failure:
            understand(shlex.split(wrong))
        assert not isinstance(failure.value, Understood)


def test_the_site_is_made_without_a_warning_and_has_what_the_code_says(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(tmp_path)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        env={**os.environ, "NO_MKDOCS_2_WARNING": "1", "PYTHONPATH": str(ROOT)},
    )
    assert done.returncode == 0, done.stdout + done.stderr
    made = {path.stem: path.read_text() for path in (tmp_path / "reference").glob("*.html")}
    for command in cli.COMMANDS:
        assert f"spark-ray {' '.join(command.words)}" in made["commands"]
    for field in BuildConfig.model_fields:
        assert f"--{field.replace('_', '-')}" in made["commands"]
    for metric in declared():
        assert metric.exported in made["metrics"]
    assert "Build or resume one dataset version" in made["python"]
    assert "<!--" not in made["metrics"].partition("<article")[2].partition("</article>")[0]


def test_the_reference_has_the_settings_inside_of_settings_too() -> None:
    page = (ROOT / "docs" / "reference" / "commands.md").read_text()
    shown = set(re.findall(r"<!-- settings: (\S+) -->", page))
    for place in sorted(shown):
        module, _, name = place.partition(":")
        for kind in nested(getattr(importlib.import_module(module), name)):
            assert f"{kind.__module__}:{kind.__qualname__}" in shown


def test_the_fields_of_a_stage_are_explained() -> None:
    page = (ROOT / "docs" / "how-to" / "train.md").read_text()
    assert re.findall(r"^\| `(\w+)` \|", page, re.MULTILINE) == list(Stage.model_fields)


def test_every_command_is_documented() -> None:
    said = {tuple(words) for line in lines() for words in commands_in(line.text)}
    texts = [" ".join(words) for words in said]
    for command in cli.COMMANDS:
        asked = f"spark-ray {' '.join(command.words)}"
        made = f"make {command.words[0]}"
        assert any(asked in text or text == made for text in texts), asked


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_python_on_a_page_is_python_and_imports_what_there_is(page: Path) -> None:
    for block in blocks(page, "python"):
        for node in ast.walk(ast.parse(block)):
            if isinstance(node, ast.ImportFrom) and node.module.startswith("spark_ray"):
                module = importlib.import_module(node.module)
                assert all(hasattr(module, name.name) for name in node.names)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_links_and_names_of_files_lead_somewhere(page: Path) -> None:
    text = page.read_text()
    for target in re.findall(r"\]\(([^)#]+)\)", text):
        if not target.startswith("http"):
            assert (page.parent / target).exists(), target
    folders = "jobs|serve_configs|tests|benchmarks|spark_ray|notebooks|monitoring"
    for name in re.findall(rf"`((?:{folders})/[\w/*.-]*)`", text):
        assert list(ROOT.glob(name.rstrip("/"))), name


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_settings_in_the_text_are_settings(page: Path) -> None:
    """`--flags` within sentences and tables, outside of commands."""
    known = {"--help", "--version", "--clip", "--config", "--json", "--to"}
    for command in ("datasets.config:BuildConfig", "training.config:TrainConfig",
                    "evaluation.config:EvaluateConfig", "demo.config:DemoConfig",
                    "monitoring.commands:RenderConfig", "serving.commands:CreateKey",
                    "training.search.config:StudyConfig", "cluster.config:SubmitConfig",
                    "cluster.values:ClusterValues", "doctor.config:DoctorConfig"):  # fmt: skip
        module, _, name = command.partition(":")
        fields = getattr(importlib.import_module(f"spark_ray.{module}"), name).model_fields
        known |= {f"--{field.replace('_', '-')}" for field in fields}
        known |= {f"--no-{field.replace('_', '-')}" for field in fields}
    for code in re.findall(r"`([^`\n]+)`", _FENCE.sub("", page.read_text())):
        if code.startswith(("--", "spark-ray")):
            assert set(re.findall(r"--[a-z][a-z-]+", code)) <= known, code
