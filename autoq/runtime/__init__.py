"""The machine: runtimes, data read from disk, metrics on real outputs, and measurement."""
