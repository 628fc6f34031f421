"""These tests run under trial, which turns the reactor itself; pytest-twisted already does so in its process."""

collect_ignore_glob = ["test_*.py"]
