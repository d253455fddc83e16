"""The parts of the report, one a file; each gives `section(inputs)`, which is None where there is nothing to show."""
