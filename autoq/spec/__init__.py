"""YAML -> checked values: job files, search spaces, hardware profiles. An error names the file and the field."""
