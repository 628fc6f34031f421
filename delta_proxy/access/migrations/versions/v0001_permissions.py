"""Users, groups, memberships, grants, and the version that every change of them moves.

The version is moved by triggers, in the transaction of the change itself: so a grant that somebody deletes
by hand in `psql` or `sqlite3` is out of force as soon as one that was revoked by the command line.
"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0001"
down_revision = None
branch_labels = None
depends_on = None

WATCHED = ("users", "groups", "memberships", "grants")


def upgrade() -> None:
    """Create the tables, the version row and the triggers."""
    moment = sa.DateTime(timezone=True)
    op.create_table(
        "users",
        sa.Column("id", sa.Text, primary_key=True),
        sa.Column("access_key", sa.Text, nullable=False, unique=True),
        sa.Column("sealed_secret", sa.Text, nullable=False),
        sa.Column("disabled", sa.Boolean, nullable=False, server_default=sa.false()),
        sa.Column("read_only", sa.Boolean, nullable=False, server_default=sa.false()),
        sa.Column("created_at", moment, nullable=False),
    )
    op.create_table(
        "groups",
        sa.Column("id", sa.Text, primary_key=True),
        sa.Column("created_at", moment, nullable=False),
    )
    op.create_table(
        "memberships",
        sa.Column("group_id", sa.Text, sa.ForeignKey("groups.id", ondelete="CASCADE"), primary_key=True),
        sa.Column("user_id", sa.Text, sa.ForeignKey("users.id", ondelete="CASCADE"), primary_key=True),
    )
    op.create_table(
        "grants",
        sa.Column("id", sa.Integer, primary_key=True, autoincrement=True),
        sa.Column("principal_kind", sa.Text, nullable=False),
        sa.Column("principal_id", sa.Text, nullable=False),
        sa.Column("table_name", sa.Text, nullable=False),
        sa.Column("partition_filters", sa.Text, nullable=False),
        sa.Column("expires_at", moment),
        sa.Column("granted_by", sa.Text, nullable=False),
        sa.Column("note", sa.Text, nullable=False, server_default=""),
        sa.Column("created_at", moment, nullable=False),
        sa.CheckConstraint("principal_kind IN ('user', 'group')", name="grants_principal_kind"),
        sqlite_autoincrement=True,
    )
    op.create_index("grants_principal", "grants", ["principal_kind", "principal_id", "table_name"])
    version = op.create_table(
        "version",
        sa.Column("id", sa.Integer, primary_key=True),
        sa.Column("number", sa.BigInteger, nullable=False),
        sa.CheckConstraint("id = 1", name="version_one_row"),
    )
    op.bulk_insert(version, [{"id": 1, "number": 1}])
    if op.get_bind().dialect.name == "postgresql":
        _watch_postgresql()
    else:
        _watch_sqlite()


def downgrade() -> None:
    """Drop all of it."""
    for table in ("memberships", "grants", "users", "groups", "version"):
        op.drop_table(table)
    if op.get_bind().dialect.name == "postgresql":
        op.execute("DROP FUNCTION delta_proxy_permissions_changed()")


def _watch_postgresql() -> None:
    op.execute(
        """
        CREATE FUNCTION delta_proxy_permissions_changed() RETURNS trigger
        LANGUAGE plpgsql SET search_path FROM CURRENT AS $$
        BEGIN
            UPDATE version SET number = number + 1;
            PERFORM pg_notify('delta_proxy_permissions', '');
            RETURN NULL;
        END $$
        """
    )
    for table in WATCHED:
        op.execute(
            f"""
            CREATE TRIGGER {table}_changed AFTER INSERT OR UPDATE OR DELETE OR TRUNCATE ON {table}
            FOR EACH STATEMENT EXECUTE FUNCTION delta_proxy_permissions_changed()
            """
        )


def _watch_sqlite() -> None:
    for table in WATCHED:
        for change in ("INSERT", "UPDATE", "DELETE"):
            name = f"{table}_{change.lower()}"
            bump = "BEGIN UPDATE version SET number = number + 1; END"
            op.execute(f"CREATE TRIGGER {name} AFTER {change} ON {table} {bump}")
