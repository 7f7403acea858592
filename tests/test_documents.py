"""The documents are true: commands run, tables come from records, the map names what is there."""

from __future__ import annotations

import re
import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from benchmarks import tables


@pytest.mark.parametrize("path", tables.DOCUMENTS, ids=lambda path: path.parent.name)
def test_tables_are_those_of_the_records(path: Path) -> None:
    text = path.read_text(encoding="utf-8")
    assert tables.rendered(text) == text, "run: python -m benchmarks tables"


def test_the_map_names_every_file_of_the_engine(root: Path) -> None:
    readme = (root / "README.md").read_text(encoding="utf-8")
    code_map = readme[readme.index("## A map of the code") : readme.index("Imports point one way")]
    named = set(re.findall(r"[\w.]+\.py|\w+/", code_map))
    there = {path.name for path in (root / "engine" / "ovenbird").glob("*.py")} - {"__init__.py"}
    assert there <= named
    for name in re.findall(r"\w+\.py", code_map):
        assert list(root.glob(name)) or list((root / "engine").rglob(name)), name


def test_the_python_example_runs(root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    readme = (root / "README.md").read_text(encoding="utf-8")
    code = re.search(r"```python\n(.*?)```", readme, re.DOTALL)
    assert code
    monkeypatch.chdir(tmp_path)
    exec(code[1].replace("num_inference_steps=32", "num_inference_steps=2"), {})
    assert (tmp_path / "boat.png").is_file()


def test_every_flag_in_the_readme_exists(root: Path) -> None:
    from ovenbird import cli
    from ovenbird_export.cli import export

    readme = (root / "README.md").read_text(encoding="utf-8")
    commands = {
        "python demo.py": cli.generate,
        "ovenbird frames": cli.frames,
        "ovenbird upscale": cli.upscale,
        "ovenbird tune": cli.tune,
        "ovenbird export": export,
    }
    for start, command in commands.items():
        known = {option for parameter in command.params for option in parameter.opts}
        lines = re.findall(rf"^(?:pip install.*)?{re.escape(start)}.*$", readme, re.MULTILINE)
        assert lines
        for line in lines:
            assert set(re.findall(r"--[\w-]+", line.partition(start)[2])) <= known, line
