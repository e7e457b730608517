"""Times an ONNX file and prints JSON, as a program on a board of yours would. Needs onnxruntime, and nothing of autoq.

python time_model.py MODEL.onnx --feeds FEEDS.npz [--threads 1] [--runs 50]
"""

from __future__ import annotations

import argparse
import json
import time

import numpy as np
import onnxruntime


def main() -> None:
    """Open, warm up, time, print."""
    parser = argparse.ArgumentParser()
    parser.add_argument("model")
    parser.add_argument("--feeds", required=True, help="one inference's inputs, an .npz of arrays by their names")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--runs", type=int, default=50)
    given = parser.parse_args()
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = given.threads
    session = onnxruntime.InferenceSession(given.model, options, providers=["CPUExecutionProvider"])
    with np.load(given.feeds) as archive:
        feeds = {name: archive[name] for name in archive.files}
    for _ in range(10):
        session.run(None, feeds)
    times = []
    for _ in range(given.runs):
        start = time.perf_counter()
        session.run(None, feeds)
        times.append(1e3 * (time.perf_counter() - start))
    print(json.dumps({"latency_ms": times}))


if __name__ == "__main__":
    main()
