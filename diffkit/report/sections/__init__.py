"""The parts of the report, one a file. Each has `section(inputs)`, which is None if there is nothing to show."""
