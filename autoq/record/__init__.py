"""What a search leaves behind: ``front.json``, tables, plots, a report, tracked runs and exported models."""

from autoq.record.choice import select
from autoq.record.front import read_front, write_front
from autoq.record.summary import describe_gain, front_table

__all__ = ["describe_gain", "front_table", "read_front", "select", "write_front"]
