"""One job on several pieces of hardware: ``hardware: [a, b]``. A search for each; then every file on each of them.

::

    OUT/
      targets.json    the job, what was measured of every file on every target, and what one file for all costs
      targets.html    the same as a page
      PROFILE/        the run folder of each target's own search

Searches follow one another, since they time on one machine. What is the same is not done again: model and data are read
once, quantized weights come from the bank, a file that was scored with the same arithmetic is not scored again, and
later searches begin with the fronts of earlier ones.
"""

from autoq.targets.run import TargetsOutcome, run_targets

__all__ = ["TargetsOutcome", "run_targets"]
