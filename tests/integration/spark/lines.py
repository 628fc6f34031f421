"""The lines of Spark: the pyspark and the jars of each."""

from __future__ import annotations

import pathlib
import sys

import attrs

from tests.integration.tools import Step, Tool

HERE = pathlib.Path(__file__).resolve().parent
COPY = "org.apache.maven.plugins:maven-dependency-plugin:3.8.1:copy-dependencies"


@attrs.frozen
class Line:
    """A line of Spark: its pom, and the pyspark that belongs to it."""

    name: str
    pyspark: str

    @property
    def pom(self) -> pathlib.Path:
        """What names its jars."""
        return HERE / f"{self.name}.pom.xml"

    @property
    def tool(self) -> Tool:
        """A folder with pyspark in `python` and the jars in `jars`."""
        return Tool(self.name, ["java", "mvn"], self._install, [self.pom], self.pyspark)

    def _install(self, folder: pathlib.Path, run: Step) -> None:
        pip = [sys.executable, "-m", "pip", "install", "-q", "--no-compile"]
        run([*pip, "--target", str(folder / "python"), f"pyspark=={self.pyspark}"], folder)
        copy = ["mvn", "-B", "-q", "-f", str(self.pom), COPY, "-DincludeScope=runtime"]
        run([*copy, f"-DoutputDirectory={folder / 'jars'}"], folder)


LINES = (Line("spark-3.5", "3.5.9"), Line("spark-4.0", "4.0.5"))
