from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from autoq.core.policy import Policy
from autoq.core.result import FAILURE_REASONS, Failure, Latency, Trial
from autoq.core.scheme import Scheme
from autoq.errors import RunError
from autoq.search.store import TrialLog
from tests.small_job import small_disk

SCHEMES = [Scheme.parse(text) for text in ("float32", "w4-gptq", "w8a8@percentile99.999", "w4a8-s8-tensor@mse")]

positive = st.floats(1e-9, 1e9)
latencies = st.builds(
    Latency,
    median_ms=positive,
    ratio=positive,
    ratio_ci95=st.tuples(positive, positive),
    batch=st.integers(1, 64),
    threads=st.integers(1, 64),
    blocks_ms=st.lists(positive, max_size=4).map(tuple),
    baseline_blocks_ms=st.lists(positive, max_size=4).map(tuple),
)
policies = st.dictionaries(
    st.text(st.characters(exclude_categories=["Cs"]), min_size=1), st.sampled_from(SCHEMES), min_size=1, max_size=4
).map(Policy.of)
trials = st.builds(
    Trial,
    number=st.integers(0, 10_000),
    policy=policies,
    origin=st.text(st.characters(exclude_categories=["Cs"])),
    metric=st.none() | st.floats(allow_nan=False, allow_infinity=False),
    latency=st.none() | latencies,
    latency_modelled=st.none() | positive,
    size_bytes=st.none() | st.integers(1, 2**40),
    peak_memory_bytes=st.none() | st.integers(0, 2**40),
    weight_bits_mean=st.none() | positive,
    sha256=st.none() | st.just("ab" * 32),
    seconds=st.dictionaries(st.sampled_from(["build", "load", "metric"]), positive),
    failure=st.none() | st.builds(Failure, reason=st.sampled_from(FAILURE_REASONS), message=st.text("a\n\u2028\x85é")),
)


def plain(number: int) -> Trial:
    return Trial(number=number, policy=Policy.of({"a": SCHEMES[number % 4], f"l{number}": SCHEMES[0]}), origin="seed:x")


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=60)
@given(trial=trials)
def test_what_is_read_is_what_was_written(tmp_path: Path, trial: Trial) -> None:
    log = TrialLog(tmp_path / "one.jsonl")
    log.path.unlink(missing_ok=True)
    log.append(trial)
    assert log.read() == [trial]
    # Bit for bit: a float that came back as its neighbour would make another search of a resumed one.
    assert repr(log.read()) == repr([trial])


def test_trials_come_back_in_order_and_a_missing_file_has_none(tmp_path: Path) -> None:
    log = TrialLog(tmp_path / "trials.jsonl")
    assert log.read() == []
    for number in range(5):
        log.append(plain(number))
    assert [trial.number for trial in log.read()] == [0, 1, 2, 3, 4]


@pytest.mark.parametrize("cut", [1, 10, 80])
def test_a_line_cut_short_is_left_out_and_the_next_trial_takes_its_place(tmp_path: Path, cut: int) -> None:
    log = TrialLog(tmp_path / "trials.jsonl")
    for number in range(3):
        log.append(plain(number))
    whole = log.path.read_bytes()
    log.path.write_bytes(whole[:-cut])
    # Reading changes nothing: the search that writes the file may be running.
    assert [trial.number for trial in log.read()] == [0, 1]
    assert log.path.read_bytes() == whole[:-cut]
    log.append(plain(2))
    assert log.path.read_bytes() == whole


def test_a_first_line_cut_short(tmp_path: Path) -> None:
    log = TrialLog(tmp_path / "trials.jsonl")
    log.path.write_bytes(b'{"version": 1, "num')
    assert log.read() == []
    log.append(plain(7))
    assert [trial.number for trial in log.read()] == [7]


@pytest.mark.parametrize(
    "line",
    [
        b"\x00\x00\x00\x00",
        b"{}",
        b"[]",
        b"5",
        b'{"version": 99}',
        b'{"version": 1}',
        b'{"version": 1, "policy": {"a": "w9"}}',
        b'{"version": 1, "policy": ["a"]}',
        b'{"version": 1, "policy": {"a": "w8"}, "number": "x", "origin": "y"}',
        b'{"version": 1, "policy": {"a": "w8"}, "number": 1, "origin": "y", "metric": NaN}',
        b"[" * 50_000,
    ],
)
def test_a_damaged_line_is_named(tmp_path: Path, line: bytes) -> None:
    log = TrialLog(tmp_path / "trials.jsonl")
    log.append(plain(0))
    with log.path.open("ab") as handle:
        handle.write(line + b"\n")
    log.append(plain(1))
    with pytest.raises(RunError, match=r"trials\.jsonl, line 2 is damaged: .*another --out"):
        log.read()


def test_a_trial_that_was_tried_again_stands_once_in_its_first_place(tmp_path: Path) -> None:
    log = TrialLog(tmp_path / "trials.jsonl")
    lost = Trial(
        number=0, policy=plain(0).policy, origin="seed:x", failure=Failure(reason="worker_lost", message="gone")
    )
    for trial in (lost, plain(1), plain(0)):
        log.append(trial)
    assert log.read() == [plain(0), plain(1)]


def test_a_full_disk_is_said_and_the_finished_trials_stay(tmp_path: Path) -> None:
    with small_disk(tmp_path / "disk", kilobytes=16) as disk:
        log = TrialLog(disk / "trials.jsonl")
        number = 0
        with pytest.raises(RunError, match=r"the disk is full: .*trials\.jsonl"):
            for number in range(1000):
                log.append(plain(number))
        assert number > 10
        assert [trial.number for trial in log.read()] == list(range(number))
        # With room again the log goes on behind the last whole line.
        data = log.path.read_bytes()
    later = TrialLog(tmp_path / "copy.jsonl")
    later.path.write_bytes(data)
    later.append(plain(number))
    assert [trial.number for trial in later.read()] == list(range(number + 1))


def test_a_log_that_cannot_be_read_is_named(tmp_path: Path) -> None:
    folder = tmp_path / "trials.jsonl"
    folder.mkdir()
    with pytest.raises(RunError, match=r"trials\.jsonl cannot be read: Is a directory"):
        TrialLog(folder).read()
    with pytest.raises(RunError, match=r"trials\.jsonl cannot be written: Is a directory"):
        TrialLog(folder).append(plain(0))
