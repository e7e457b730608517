"""Values only: schemes, policies, results. No files, no clocks, no heavy libraries."""
