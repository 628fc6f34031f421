"""duckdb: Parquet files by its extension httpfs."""

from __future__ import annotations

from .duckdb_connection import connection
from .steps import At, Operations, keys, main, rows


def connect(at: At) -> Operations:
    """Reading Parquet files with duckdb."""
    con, bucket = connection(at), at.bucket

    def file(key: str) -> dict[str, object]:
        # paste from here
        found = con.execute("SELECT id FROM read_parquet(?)", [f"s3://{bucket}/{key}"]).fetchall()
        # paste to here
        return rows([each[0] for each in found])

    def listing(prefix: str, page: int) -> dict[str, object]:
        del page
        found = con.execute("SELECT file FROM glob(?)", [f"s3://{bucket}/{prefix}**"]).fetchall()
        return keys([each[0].removeprefix(f"s3://{bucket}/") for each in found])

    return {"file": file, "files": file, "list": listing, "special": file}


if __name__ == "__main__":
    main(connect)
