"""Runs the migrations on the connection that `migrations.upgrade` opened, in its transaction."""

from __future__ import annotations

from alembic import context

from delta_proxy.access.migrations import VERSION_TABLE

context.configure(
    connection=context.config.attributes["connection"],
    version_table=VERSION_TABLE,
    transactional_ddl=True,
)
with context.begin_transaction():
    context.run_migrations()
