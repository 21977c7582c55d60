from __future__ import annotations

from collections.abc import Callable

import pytest

from compresslens.export import latency
from compresslens.export.comparison import Comparison
from compresslens.export.latency import LEAST_ROUNDS, MOST_ROUNDS, Latency, interleaved, speedup, summary


class Clock:
    """A clock that only moves when a function is called."""

    def __init__(self) -> None:
        self.now = 0.0
        self.called: list[str] = []

    def perf_counter(self) -> float:
        return self.now

    def function(self, name: str, seconds: float) -> Callable[[], None]:
        def call() -> None:
            self.called.append(name)
            self.now += seconds

        return call


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    made = Clock()
    monkeypatch.setattr(latency, "time", made)
    return made


def test_the_functions_take_turns(clock: Clock) -> None:
    quick, slow = 2.0**-6, 0.5
    found = interleaved({"a": clock.function("a", quick), "b": clock.function("b", slow)}, rounds=6)
    assert clock.called[:4] == ["a", "a", "b", "b"]
    rounds = ["".join(clock.called[start : start + 5]) for start in range(4, len(clock.called), 5)]
    assert len(rounds) == 6
    assert set(rounds) == {"aaaab", "baaaa"}, "a quick call warms up first, and is repeated; the order varies"
    assert (found["a"].median, found["a"].quartiles) == (15.625, (15.625, 15.625))
    assert found["b"].rounds == (500,) * 6
    assert speedup(found["b"], found["a"]) == (32, (32, 32))


@pytest.mark.parametrize(("seconds", "rounds"), [(0.0, LEAST_ROUNDS), (12.0, 12), (12.9, 12), (1e9, MOST_ROUNDS)])
def test_as_many_rounds_as_there_is_time_for(clock: Clock, seconds: float, rounds: int) -> None:
    calls = {"a": clock.function("a", 0.25), "b": clock.function("b", 0.6875), "c": clock.function("c", 2.0**-6)}
    found = interleaved(calls, seconds)
    assert len(found["a"].rounds) == rounds


def test_median_and_quartiles() -> None:
    found = summary([[1.0, 2.0, 9.0], [3.0, 4.0, 5.0], [6.0, 7.0, 8.0]])
    assert (found.median, found.quartiles, found.rounds) == (5, (3, 7), (2, 4, 7))
    assert found.as_json() == {"median_ms": 5, "quartiles_ms": [3, 7], "rounds": 3}


def test_speed_up_is_that_of_pairs() -> None:
    """In the second round the machine was ten times slower: it does not count as a speed-up of either."""
    reference = Latency(4.0, (4.0, 4.0), (4.0, 40.0, 4.0))
    model = Latency(2.0, (2.0, 2.0), (2.0, 20.0, 1.0))
    assert speedup(reference, model) == (2.0, (2.0, 3.0))
    assert speedup(Latency(4.0, (4.0, 4.0), (4.0,)), Latency(2.0, (2.0, 2.0), (1.0,)))[0] == 4.0
    assert Comparison(model, reference).as_json()["speedup"] == 2.0
    assert Comparison(model, None).as_json()["speedup"] is None
    assert Comparison(model, None).speedup is None
