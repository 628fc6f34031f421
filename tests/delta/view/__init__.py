"""Tests of the filtered log."""
