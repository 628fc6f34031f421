"""Runs inside the Python of one line of Spark, and does what the test tells it, one JSON command a line.

Each command is answered by a file at the path it names, then by a line on standard output. One session serves
all the commands: the endpoint, the credentials and the HTTP proxy are settings of each bucket.
"""

from __future__ import annotations

import json
import os
import pathlib
import sys
import tempfile
import traceback
from collections.abc import Callable, Mapping
from typing import Any

Spark = Any
Frame = Any

MICS = ("XLON", "XETR", "XPAR", "XMIL")
MIC_OF_ID = f"array{MICS}[CAST(id % 4 AS INT)]"
DONE = "-- done --"


def session(jars: str, settings: Mapping[str, str]) -> Spark:
    """A local session with Delta Lake and S3A; `settings` are Hadoop's."""
    # The tables are tiny: compiling for them costs far more than running.
    java = "-XX:TieredStopAtLevel=1 -XX:+UseSerialGC"
    os.environ["PYSPARK_SUBMIT_ARGS"] = (
        f"--driver-memory 1g --driver-class-path {jars}/* --driver-java-options '{java}' pyspark-shell"
    )
    from pyspark.sql import SparkSession

    builder = SparkSession.builder.master("local[2]").appName("delta-s3-proxy")
    own = {
        "spark.sql.extensions": "io.delta.sql.DeltaSparkSessionExtension",
        "spark.sql.catalog.spark_catalog": "org.apache.spark.sql.delta.catalog.DeltaCatalog",
        "spark.sql.session.timeZone": "UTC",
        "spark.sql.shuffle.partitions": "2",
        "spark.databricks.delta.snapshotPartitions": "2",
        # VACUUM lists with as many tasks, 10000 unless told.
        "spark.sql.sources.parallelPartitionDiscovery.parallelism": "2",
        "spark.sql.codegen.wholeStage": "false",
        "spark.sql.codegen.factoryMode": "NO_CODEGEN",
        "spark.ui.enabled": "false",
        "spark.ui.showConsoleProgress": "false",
        "spark.driver.host": "127.0.0.1",
        "spark.driver.bindAddress": "127.0.0.1",
        **{f"spark.hadoop.{name}": value for name, value in settings.items()},
    }
    for name, value in own.items():
        builder = builder.config(name, value)
    made = builder.getOrCreate()
    made.sparkContext.setLogLevel("ERROR")
    return made


def configure(spark: Spark, settings: Mapping[str, str]) -> None:
    """More settings of Hadoop, for buckets that were not used yet."""
    hadoop = spark.sparkContext._jsc.hadoopConfiguration()
    for name, value in settings.items():
        hadoop.set(name, value)


def create(spark: Spark, uri: str, properties: Mapping[str, str]) -> None:
    """An empty table that is partitioned by MIC."""
    listed = ", ".join(f"'{name}' = '{value}'" for name, value in properties.items())
    spark.sql(
        f"CREATE TABLE delta.`{uri}` (id BIGINT, MIC STRING, price DOUBLE, note STRING) USING delta "
        f"PARTITIONED BY (MIC) TBLPROPERTIES ({listed})"
    )


def insert(spark: Spark, uri: str, first: int, last: int, columns: str = "price, note") -> None:
    """Rows with these ids, over all MICs."""
    values = {"price": "id / 4.0 AS price", "cost": "id / 4.0 AS cost", "note": "concat('n', id) AS note"}
    chosen = ", ".join(values[name.strip()] for name in columns.split(","))
    spark.sql(
        f"INSERT INTO delta.`{uri}` (id, MIC, {columns}) "
        f"SELECT id, {MIC_OF_ID} AS MIC, {chosen} FROM range({first}, {last})"
    )


def write_changes(spark: Spark, uri: str) -> None:
    """A change data feed with updates, deletes, a merge, and a commit that is of denied partitions alone."""
    create(spark, uri, {"delta.enableChangeDataFeed": "true"})
    insert(spark, uri, 0, 80)
    spark.sql(f"UPDATE delta.`{uri}` SET price = price + 1 WHERE id % 10 = 0")
    spark.sql(f"DELETE FROM delta.`{uri}` WHERE id % 7 = 0")
    spark.sql(
        f"MERGE INTO delta.`{uri}` AS t USING "
        f"(SELECT id, {MIC_OF_ID} AS MIC FROM range(70, 100)) AS s "
        "ON t.id = s.id AND t.MIC = s.MIC WHEN MATCHED THEN UPDATE SET note = 'merged' "
        "WHEN NOT MATCHED THEN INSERT (id, MIC, price, note) VALUES (s.id, s.MIC, 0.5, 'new')"
    )
    spark.sql(f"DELETE FROM delta.`{uri}` WHERE MIC = 'XPAR' AND id < 40")


def write_mapped(spark: Spark, uri: str) -> None:
    """Column mapping: a column renamed, another one dropped; checkpoints of one file."""
    create(
        spark,
        uri,
        {
            "delta.columnMapping.mode": "name",
            "delta.minReaderVersion": "2",
            "delta.minWriterVersion": "5",
            "delta.checkpointInterval": "2",
        },
    )
    insert(spark, uri, 0, 40)
    spark.sql(f"ALTER TABLE delta.`{uri}` RENAME COLUMN price TO cost")
    insert(spark, uri, 40, 60, "cost, note")
    spark.sql(f"ALTER TABLE delta.`{uri}` DROP COLUMN note")
    insert(spark, uri, 60, 80, "cost")


def write_modern(spark: Spark, uri: str) -> None:
    """V2 checkpoints, timestamps in the commits, row tracking, deletion vectors."""
    create(
        spark,
        uri,
        {
            "delta.checkpointPolicy": "v2",
            "delta.checkpointInterval": "2",
            "delta.enableInCommitTimestamps": "true",
            "delta.enableRowTracking": "true",
            "delta.enableDeletionVectors": "true",
        },
    )
    insert(spark, uri, 0, 40)
    insert(spark, uri, 40, 80)
    spark.sql(f"DELETE FROM delta.`{uri}` WHERE id % 3 = 0")
    insert(spark, uri, 80, 100)
    spark.sql(f"OPTIMIZE delta.`{uri}`")


def tidy(spark: Spark, uri: str) -> None:
    """Overwrite the table with a part of it, and delete what no version needs any more but the newest."""
    spark.read.format("delta").load(uri).where("id < 50").write.format("delta").mode("overwrite").save(uri)
    spark.conf.set("spark.databricks.delta.retentionDurationCheck.enabled", "false")
    spark.sql(f"VACUUM delta.`{uri}` RETAIN 0 HOURS")


WRITERS: dict[str, Callable[[Spark, str], None]] = {
    "changes": write_changes,
    "mapped": write_mapped,
    "modern": write_modern,
}


def rows(frame: Frame) -> list[str]:
    """All rows, as sorted texts."""
    return sorted(
        json.dumps(row.asDict(recursive=True), default=str, sort_keys=True) for row in frame.collect()
    )


def at(spark: Spark, uri: str, where: str | None, **options: Any) -> Frame:
    """The table, and what the filter leaves of it."""
    frame = spark.read.format("delta").options(**options).load(uri)
    return frame if where is None else frame.where(where)


def history(spark: Spark, uri: str) -> list[tuple[int, str, str]]:
    """DESCRIBE HISTORY: version, time and operation."""
    described = spark.sql(f"DESCRIBE HISTORY delta.`{uri}`").select("version", "timestamp", "operation")
    return sorted((row.version, str(row.timestamp), row.operation) for row in described.collect())


def streamed(spark: Spark, uri: str, where: str | None, **options: Any) -> list[str]:
    """All rows that a stream of availableNow gives."""
    stream = spark.readStream.format("delta").options(**options).load(uri)
    seen: list[str] = []
    with tempfile.TemporaryDirectory() as folder:
        query = (
            (stream if where is None else stream.where(where))
            .writeStream.foreachBatch(lambda frame, _: seen.extend(rows(frame)))
            .option("checkpointLocation", folder)
            .trigger(availableNow=True)
            .start()
        )
        query.awaitTermination()
    return sorted(seen)


def look_at_any(spark: Spark, uri: str, where: str | None) -> dict[str, Any]:
    """What can be seen of every table."""
    past = history(spark, uri)
    return {
        "history": past,
        "all": rows(at(spark, uri, where)),
        "count": at(spark, uri, where).count(),
        "by version": rows(at(spark, uri, where, versionAsOf=past[len(past) // 2][0])),
    }


def look_at_trades(spark: Spark, uri: str, where: str | None) -> dict[str, Any]:
    """Points, aggregates, a time, and a stream."""
    past = history(spark, uri)
    at(spark, uri, where).createOrReplaceTempView("seen")
    aggregates = "count(*) AS rows, sum(quantity) AS quantity, min(date) AS first, max(price) AS price"
    return {
        "history": past,
        **{mic: rows(spark.sql(f"SELECT {aggregates} FROM seen WHERE MIC = '{mic}'")) for mic in MICS},
        "grouped": rows(spark.sql(f"SELECT MIC, {aggregates} FROM seen GROUP BY MIC")),
        "count": at(spark, uri, where).count(),
        "by version": at(spark, uri, where, versionAsOf=3).count(),
        "by time": at(spark, uri, where, timestampAsOf=past[len(past) // 2][1]).count(),
        "stream": streamed(spark, uri, where),
    }


def look_at_changes(spark: Spark, uri: str, where: str | None) -> dict[str, Any]:
    """The change data feed, at once and as a stream, beside the rest."""
    options = {"readChangeFeed": "true", "startingVersion": 0}
    return {
        **look_at_any(spark, uri, where),
        "changes": rows(at(spark, uri, where, **options)),
        "stream of changes": streamed(spark, uri, where, **options),
    }


LOOKS: dict[str, Callable[[Spark, str, str | None], dict[str, Any]]] = {
    "trades_plus": look_at_trades,
    "changes": look_at_changes,
}


def attempt(spark: Spark, uri: str, mic: str) -> dict[str, Any]:
    """How many rows of a MIC there are, or the error in words."""
    try:
        return {"rows": len(at(spark, uri, None).where(f"MIC = '{mic}'").collect())}
    except Exception as error:  # noqa: BLE001 - the error is what is asked for
        return {"error": str(error)}


def obey(spark: Spark, command: Mapping[str, Any]) -> Any:
    """Do what a command says."""
    configure(spark, command.get("settings", {}))
    base = command["base"]
    if command["do"] == "write":
        for name in command["tables"]:
            WRITERS[name](spark, f"{base}/{name}")
        return None
    if command["do"] == "tidy":
        tidy(spark, f"{base}/{command['table']}")
        return None
    if command["do"] == "attempt":
        return {mic: attempt(spark, f"{base}/{command['table']}", mic) for mic in command["mics"]}
    looked = {}
    for name in command["tables"]:
        looked[name] = LOOKS.get(name, look_at_any)(spark, f"{base}/{name}", command.get("where"))
    return looked


def main() -> None:
    """Serve commands until there are no more."""
    spark = session(sys.argv[1], json.loads(sys.argv[2]))
    for line in sys.stdin:
        command = json.loads(line)
        try:
            answer = {"value": obey(spark, command)}
        except Exception:  # noqa: BLE001 - whatever failed, the test must hear of it
            answer = {"error": traceback.format_exc()}
        pathlib.Path(command["answer"]).write_text(json.dumps(answer))
        print(DONE, flush=True)
    spark.stop()


if __name__ == "__main__":
    main()
