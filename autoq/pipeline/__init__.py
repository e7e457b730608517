"""The whole job. :func:`run_search` in :mod:`autoq.pipeline.run` is the flow, readable from top to bottom.

::

    run         reading, searching, the final check, the report: calls the others in this order
    exchange    what a search is given besides its job, and what it gives back
    start       run.json and the tracking server's run
    baseline    float32, scored and measured like a candidate
    scoring     how candidates are judged, and who scores and measures them
    guidance    what guides proposals: sensitivity, the latency model, the first policies
    live        what is kept up to date while it runs: the front's file, and copies of the trials
    front       the front's points and files, and polishing them
    notes       what is said of a search that has ended
"""

from autoq.pipeline.exchange import NOTHING, Events, Outcome, TakenOver
from autoq.pipeline.run import run_search
from autoq.pipeline.start import RUNS

__all__ = ["NOTHING", "RUNS", "Events", "Outcome", "TakenOver", "run_search"]
