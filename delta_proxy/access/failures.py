"""What an operator's change of the permissions, or of their schema, can fail with."""

from __future__ import annotations


class PermissionsError(Exception):
    """A change that cannot be made; the message is one line for the operator and holds no secret."""


class NotFound(PermissionsError):
    """A user, group or grant that does not exist."""


class Conflict(PermissionsError):
    """A name or access key that is taken."""


class MigrationError(Exception):
    """The schema could not be brought up to date; the message is one line and holds no URL."""
