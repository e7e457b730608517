"""``autoq layers`` on many files in one process: a line for each, ``number code stderr``. Arguments: folder, count."""

from __future__ import annotations

import contextlib
import io
import json
import resource
import sys
from pathlib import Path

from autoq.cli import main


def run(folder: Path, profile: str) -> None:
    # A file of some kilobytes that makes it ask for gigabytes must show, and not take the machine with it.
    resource.setrlimit(resource.RLIMIT_AS, (6 * 2**30, resource.RLIM_INFINITY))
    for path in sorted(folder.glob("*.onnx")):
        print(json.dumps({"start": path.name}), flush=True)
        out, err = io.StringIO(), io.StringIO()
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
            code = main(["layers", str(path), "--hardware", profile, "--json"])
        print(json.dumps({"name": path.name, "code": code, "err": err.getvalue(), "out": out.getvalue()}), flush=True)


if __name__ == "__main__":
    run(Path(sys.argv[1]), sys.argv[2])
