"""These tests run under trial, which turns the reactor itself; under pytest, pytest-twisted already does."""

collect_ignore_glob = ["test_*.py"]
