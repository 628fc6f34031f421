"""What holds for every test."""

from __future__ import annotations

from hypothesis import settings

from .integration.clients.report import pytest_terminal_summary

__all__ = ["pytest_terminal_summary"]

# Machines are shared: how long an example takes says nothing about the code.
settings.register_profile("shared-machine", deadline=None)
settings.load_profile("shared-machine")
