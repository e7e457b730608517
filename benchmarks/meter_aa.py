"""A/A test of the meter: how often does it tell a file from itself, and how far do repeated measurements spread?

    python benchmarks/meter_aa.py MODEL.onnx [--other QUANTIZED.onnx] [--repeats 50] [--threads 1] [--batch 1]

An honest 95 % interval excludes the truth in 5 % of the repeats. For MODEL against itself the truth is 1; for another
file it is not known, and the median over all repeats stands for it. The inputs are random: right for models
whose speed does not depend on their data.
"""

from __future__ import annotations

import argparse
import os
import statistics
import time
from pathlib import Path

from autoq.runtime.gauge import Measurement
from autoq.runtime.machine import describe
from autoq.runtime.meter import Meter
from autoq.runtime.ort import input_specs
from autoq.runtime.sheet import random_feeds


def row(name: str, measured: list[Measurement], truth: float | None, seconds: float) -> str:
    """One line of the table."""
    latencies = [one.latency for one in measured]
    ratios = [latency.ratio for latency in latencies]
    centre = statistics.median(ratios)
    truth = centre if truth is None else truth
    excluded = sum(not low <= truth <= high for low, high in (latency.ratio_ci95 for latency in latencies))
    half = statistics.mean((high - low) / 2 for low, high in (latency.ratio_ci95 for latency in latencies))
    median_ms = statistics.median(latency.median_ms for latency in latencies)
    memory = [one.peak_memory_bytes / 1e6 for one in measured]
    return (
        f"{name:24s} {centre:7.4f} {statistics.pstdev(ratios) / centre:8.2%} {min(ratios):7.4f} {max(ratios):7.4f} "
        f"{half / centre:9.2%} {excluded:4d}/{len(ratios):<4d} {median_ms:8.3f} "
        f"{statistics.median(memory):7.1f} {max(memory) - min(memory):6.1f} "
        f"{statistics.mean(len(x.blocks_ms) for x in latencies):6.1f} {sum(one.disturbed for one in measured):9d} "
        f"{seconds / len(measured):6.2f}"
    )


def main() -> None:
    """Measure and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path)
    parser.add_argument("--other", type=Path, help="a second file to measure against MODEL")
    parser.add_argument("--repeats", type=int, default=50)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--batch", type=int, default=1)
    parser.add_argument("--open-size", type=int, default=64, help="for open dimensions other than the batch")
    given = parser.parse_args()
    machine = describe()
    print(f"{machine.cpu_model}, {machine.usable_cores} cores, load {os.getloadavg()[0]:.2f} at the start")
    print(
        f"{'file':24s} {'ratio':>7s} {'spread':>8s} {'least':>7s} {'most':>7s} {'interval±':>9s} {'excluded':>9s} "
        f"{'ms':>8s} {'MB':>7s} {'±MB':>6s} {'rounds':>6s} {'disturbed':>9s} {'s each':>6s}"
    )
    feeds = random_feeds(input_specs(given.model), given.batch, given.open_size)
    with Meter(given.model, feeds, batch=given.batch, threads=given.threads) as meter:
        for path, truth in [(given.model, 1.0), *([(given.other, None)] if given.other else [])]:
            start = time.perf_counter()
            measured = [meter.measure(path) for _ in range(given.repeats)]
            print(row(path.name, measured, truth, time.perf_counter() - start), flush=True)
    print(f"load {os.getloadavg()[0]:.2f} at the end")


if __name__ == "__main__":
    main()
