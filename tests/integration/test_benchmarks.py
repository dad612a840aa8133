"""The benchmarks run, and what they write is what the README's table reads."""

import json
import subprocess
import sys

import pytest

from benchmarks import decode, harness, table

KEYS = {"name", "baseline", "ratio", "goal", "spread", "machine", "details"}
MACHINE = {"cpu", "cores", "memory_gib", "python", "versions"}


@pytest.fixture(scope="module")
def results():
    return list(decode.run(quick=True))


def test_decode_benchmark_compares_one_pass_with_naive_programs_and_bare_decode(results):
    assert [result.name.rpartition("h264-")[2] for result in results] == [
        "naive",
        "bare",
        "frames-only",
        "fast",
    ]
    naive, _, frames_only, fast = results
    assert naive.details["scene_cuts"], "footage without cuts proves nothing"
    assert naive.details["cuts_equal_pyscenedetect"]
    assert frames_only.details["frames_identical_to_full_pass"]
    assert fast.details["worst_psnr_db"] > 15
    assert naive.ratio < 1


def test_the_readmes_table_is_made_from_the_results():
    assert table.render(table.load()) in (harness.ROOT / "README.md").read_text()


def test_result_file_names_its_baseline_and_machine_but_no_host(results, tmp_path):
    results[0].write(tmp_path)
    [path] = tmp_path.iterdir()
    written = json.loads(path.read_text())

    assert set(written) == KEYS
    assert set(written["machine"]) == MACHINE
    assert str(harness.ROOT) not in path.read_text()
    low, high = written["spread"]
    assert low <= written["ratio"] <= high


def test_table_goes_between_the_markers_of_the_readme(results, tmp_path):
    for result in results:
        result.write(tmp_path / "results")
    readme = tmp_path / "README.md"
    readme.write_text("before\n<!-- benchmarks -->\nold\n<!-- /benchmarks -->\nafter\n")

    table.update_readme(readme, tmp_path / "results")
    once = readme.read_text()
    table.update_readme(readme, tmp_path / "results")

    assert readme.read_text() == once
    assert once.startswith("before\n<!-- benchmarks -->\n| benchmark |")
    assert once.endswith("<!-- /benchmarks -->\nafter\n")
    assert "old" not in once
    assert all(f"| {result.name} |" in once for result in results)


def test_a_readme_without_markers_is_left_alone_and_says_so(tmp_path):
    readme = tmp_path / "README.md"
    readme.write_text("no table here\n")

    with pytest.raises(SystemExit, match="lacks the markers"):
        table.update_readme(readme, tmp_path)
    assert readme.read_text() == "no table here\n"


@pytest.mark.parametrize("meter", ["_ProcMeter", "_CgroupMeter"])
def test_cpu_of_a_process_whose_parent_ignores_its_end_is_counted(meter):
    """As Ray's raylet does with its workers; plain rusage sees nothing of them."""
    if meter == "_CgroupMeter" and harness._own_cgroup() is None:
        pytest.skip("no cgroup to write to")
    # In a process of its own, for it becomes the reaper of every orphan below it.
    program = f"""
import subprocess, sys
from benchmarks import harness
burn = "import time\\nend = time.process_time() + 1\\nwhile time.process_time() < end: pass"
parent = f"import signal, subprocess, sys\\nsignal.signal(signal.SIGCHLD, signal.SIG_IGN)\\n"
parent += f"subprocess.Popen([sys.executable, '-c', {{burn!r}}]).wait()"
meter = harness.{meter}()
meter.run([sys.executable, "-c", parent], check=True)
print(meter.cpu_s())
meter.close()
"""
    done = subprocess.run(
        [sys.executable, "-c", program],
        cwd=harness.ROOT,
        capture_output=True,
        text=True,
        check=True,
    )
    assert 0.9 < float(done.stdout) < 3
