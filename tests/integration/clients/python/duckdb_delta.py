"""duckdb: tables by its extension delta."""

from __future__ import annotations

from .duckdb_connection import connection
from .steps import At, Operations, main, rows


def connect(at: At) -> Operations:
    """Reading tables with duckdb."""
    con, bucket = connection(at), at.bucket

    def table(name: str, zone: str) -> dict[str, object]:
        # paste from here
        query = "SELECT id FROM delta_scan(?) WHERE zone = ?"
        found = con.execute(query, [f"s3://{bucket}/{name}", zone]).fetchall()
        # paste to here
        return rows([each[0] for each in found])

    return {"table": table}


if __name__ == "__main__":
    main(connect)
