"""Which sources, families and variants are exported, proven, verified and drawn with, every cell at tiny size."""

from __future__ import annotations

import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

ROOT = Path(__file__).resolve().parents[1]
TESTS = "tests/test_export_matrix.py"


def measure() -> dict[str, Any]:
    """Run the matrix of the tests: how many cells failed, and what passed, as rows of source, family and variants."""
    with tempfile.TemporaryDirectory() as folder:
        report = Path(folder, "report.xml")
        command = [sys.executable, "-m", "pytest", TESTS, "-m", "slow or not slow", f"--junitxml={report}"]
        subprocess.run(command, cwd=ROOT, check=False)
        cases = list(ElementTree.parse(report).getroot().iter("testcase"))
    rows = [{p.attrib["name"]: p.attrib["value"] for p in case.iter("property")} for case in cases if _passed(case)]
    return {"failed": sum(not _passed(case) for case in cases), "passed": [row for row in rows if row]}


def _passed(case: ElementTree.Element) -> bool:
    return all(case.find(outcome) is None for outcome in ("failure", "error", "skipped"))
