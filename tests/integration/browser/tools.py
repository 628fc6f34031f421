"""The script of the page, bundled by esbuild from the packages of npm."""

from __future__ import annotations

import pathlib
import shutil

from tests.integration.tools import Step, Tool

HERE = pathlib.Path(__file__).resolve().parent
SOURCES = (HERE / "package.json", HERE / "page.js")


def _bundle(folder: pathlib.Path, run: Step) -> None:
    for source in SOURCES:
        shutil.copy(source, folder)
    run(["npm", "install", "--no-audit", "--no-fund", "--loglevel=error"], folder)
    esbuild = ["node_modules/.bin/esbuild", "page.js", "--bundle", "--format=esm"]
    run([*esbuild, "--outfile=out.js", "--log-level=error"], folder)


BUNDLE = Tool("browser", ["node", "npm"], _bundle, SOURCES)
