"""The load benchmark: how growth is told, and that one process can't hide behind the others."""

from benchmarks.load import Load, _name, thirds


def test_growth_is_of_each_process_that_was_there_throughout() -> None:
    samples = [{"flat (1)": 100.0, "grows (2)": 100.0 + at} for at in range(9)]
    samples[4]["late (3)"] = 50.0
    samples[0]["flat (1)"] = 900.0  # one sample is no growth
    assert thirds(samples) == {
        "flat (1)": (100.0, 100.0, 100.0),
        "grows (2)": (101.0, 104.0, 107.0),
    }


def test_the_process_that_grew_most_is_the_result_and_a_lost_one_a_failure() -> None:
    load = Load(0.0, 1.0)
    load._server = [{"flat (1)": 1000.0, "grows (2)": 10.0 + at} for at in range(9)]
    load._ray = [{"raylet (4)": 1.0}] * 9
    failures, memory = load.results()
    assert failures.ratio == 0
    assert (memory.ratio, memory.spread) == (17 / 11, (1.0, 17 / 11))
    load._server[0]["lost (3)"] = 1.0
    failures, _ = load.results()
    assert failures.ratio == 1
    assert failures.details["processes_lost"] == ["lost (3)"]


def test_a_process_is_called_what_it_is() -> None:
    replica = "ray::ServeReplica:spark-ray:model-seer.handle_request_with_rejection"
    assert _name(replica, "ray::ServeReplica:") == "model-seer"
    assert _name("ray::ProxyActor", "ray::ProxyActor") == "ProxyActor"
    assert _name("/x/ray/raylet/raylet --a", "/raylet") == "raylet"
