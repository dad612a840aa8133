"""The packages: those that this version asks for, extra by extra, and two that hurt each other."""

from collections.abc import Iterator
from importlib.metadata import PackageNotFoundError, requires, version

from packaging.requirements import Requirement

from spark_ray.doctor.config import DoctorConfig
from spark_ray.doctor.findings import Finding, wrong_if

_EXTRAS = ("models", "train", "tune", "serve", "ui", "s3", "whisper", "faster-whisper")
_SCENES = "scenedetect"
_INSTALL_SCENES = "pip install --no-deps -r requirements/no-deps.txt"


def check_packages(config: DoctorConfig) -> Iterator[Finding]:
    needed = [Requirement(text) for text in requires("spark-ray") or []]
    yield check_group("", [need for need in needed if need.marker is None], needed=True)
    for extra in _EXTRAS:
        group = [n for n in needed if n.marker and n.marker.evaluate({"extra": extra})]
        yield check_group(extra, group, needed=extra in config.needs)
    yield check_scenes(installed(_SCENES))
    yield check_opencv(installed("opencv-python"), installed("opencv-python-headless"))


def installed(package: str) -> str | None:
    """The version of an installed package."""
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def check_group(extra: str, group: list[Requirement], *, needed: bool) -> Finding:
    """The packages of an extra, or of the base where `extra` is empty."""
    name = f"spark-ray[{extra}]" if extra else "spark-ray"
    found = {need.name: installed(need.name) for need in group}
    missing = [package for package, which in found.items() if which is None]
    unfit = [
        f"{need.name} {which} instead of {need.specifier}"
        for need in group
        if (which := found[need.name]) and not need.specifier.contains(which, prereleases=True)
    ]
    install = f"pip install -c requirements/constraints.txt '{name}'"
    if unfit:
        return Finding("packages", "wrong", f"{name} has {', '.join(unfit)}: {install}")
    if not missing:
        return Finding("packages", "ok", f"{name}: every package is there")
    state = wrong_if(needed)
    return Finding("packages", state, f"{name} lacks {', '.join(sorted(missing))}: {install}")


def check_scenes(which: str | None) -> Finding:
    if which is None:
        return Finding("packages", "wrong", f"PySceneDetect is missing: {_INSTALL_SCENES}")
    return Finding("packages", "ok", f"PySceneDetect {which}")


def check_opencv(full: str | None, headless: str | None) -> Finding:
    """Both builds are one module, `cv2`; which one is there depends on who came last."""
    if full and headless:
        return Finding(
            "packages",
            "wrong",
            "opencv-python and opencv-python-headless overwrite each other: pip uninstall both, "
            "then install the headless one",
        )
    return Finding("packages", "ok", f"OpenCV {headless or full}")
