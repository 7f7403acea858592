"""The documents are true: commands run, tables come from records, links lead somewhere, messages are really printed."""

from __future__ import annotations

import errno
import os
import re
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import typed
from click.testing import CliRunner

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from benchmarks import tables
from ovenbird.cli import main
from ovenbird.hub import REFUSALS

ROOT = Path(__file__).resolve().parents[1]
PAGES = sorted((ROOT / "docs").glob("*.md"))
DOCUMENTS = [ROOT / "README.md", *PAGES, *(ROOT / name for name in ("SECURITY.md", "CHANGELOG.md"))]
DOCUMENTS += [ROOT / "benchmarks" / "README.md", ROOT / "models" / "nestling" / "README.md"]


def named(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


def blocks(text: str, *languages: str) -> Iterator[str]:
    """What stands in fences of these languages."""
    for language, block in re.findall(r"^ *```(\w*)\n(.*?)^ *```$", text, re.MULTILINE | re.DOTALL):
        if language in languages:
            yield block


@pytest.mark.parametrize("path", tables.DOCUMENTS, ids=named)
def test_tables_are_those_of_the_records(path: Path) -> None:
    text = path.read_text(encoding="utf-8")
    assert tables.rendered(text) == text, "run: python -m benchmarks tables"


def test_every_table_stands_in_one_document() -> None:
    texts = [path.read_text(encoding="utf-8") for path in tables.DOCUMENTS]
    for name in tables.PARTS:
        for marker in (f"<!-- {name} -->\n", f"\n<!-- /{name} -->"):
            assert sum(text.count(marker) for text in texts) == 1, name


def test_the_map_names_every_file_of_the_engine(root: Path) -> None:
    readme = (root / "README.md").read_text(encoding="utf-8")
    code_map = readme[readme.index("## A map of the code") : readme.index("Imports point one way")]
    named = set(re.findall(r"[\w.]+\.py|\w+/", code_map))
    there = {path.name for path in (root / "engine" / "ovenbird").glob("*.py")} - {"__init__.py"}
    assert there <= named
    for name in set(re.findall(r"\w+\.py", code_map)):
        assert list(root.glob(name)) or list((root / "engine").rglob(name)) or list((root / "docs").glob(name)), name


def test_the_readme_is_short_and_has_what_ci_types(root: Path) -> None:
    readme = (root / "README.md").read_text(encoding="utf-8")
    assert len(readme.splitlines()) <= 250
    for pattern in re.findall(r"grep -m1 '(.*?)' README.md", (root / ".ci" / "run").read_text()):
        assert re.search(pattern, readme, re.MULTILINE), pattern


def test_the_index_names_every_page(root: Path) -> None:
    index = (root / "docs" / "README.md").read_text(encoding="utf-8")
    for page in PAGES:
        assert page.name == "README.md" or f"({page.name})" in index, page.name


@pytest.mark.parametrize("path", [ROOT / "README.md", *PAGES], ids=named)
def test_the_python_examples_run(path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    known: dict[str, object] = {}
    for code in blocks(path.read_text(encoding="utf-8"), "python"):
        exec(re.sub(r"num_inference_steps=\d+", "num_inference_steps=2", code), known)
        assert [*tmp_path.iterdir()]


def test_the_page_of_the_api_is_what_its_command_writes(root: Path) -> None:
    sys.path.insert(0, str(root / "docs"))
    try:
        import build
    finally:
        sys.path.pop(0)
    assert (root / "docs" / "api.md").read_text(encoding="utf-8") == build.page(), "run: python docs/build.py"
    assert build.GROUPS["To make pictures"][0] == "Pipeline" and "### Pipeline\n" in build.page()


def anchors(path: Path) -> set[str]:
    """Of its headings, as they are made of them where it is shown."""
    headings = re.findall(r"^#+ (.*)$", path.read_text(encoding="utf-8"), re.MULTILINE)
    return {re.sub(r"[^\w -]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("path", DOCUMENTS, ids=named)
def test_links_lead_somewhere(path: Path) -> None:
    text = re.sub(r"^ *```.*?^ *```$", "", path.read_text(encoding="utf-8"), flags=re.MULTILINE | re.DOTALL)
    for target in re.findall(r"\]\(([^)\s]+)\)", re.sub(r"`[^`\n]*`", "", text)):
        place, _, anchor = target.partition("#")
        if not re.match(r"https?:", place):
            there = (path.parent / place) if place else path
            assert there.exists(), target
            assert not anchor or anchor in anchors(there), target


@pytest.mark.parametrize("path", DOCUMENTS, ids=named)
def test_lines_to_type_are_understood(path: Path) -> None:
    for block in blocks(path.read_text(encoding="utf-8"), "sh", "bash", "", "yaml"):
        for words in typed.ours(block.replace("$OFFLINE", "")):  # of docs/ci.md; what a shell makes nothing of
            typed.understood(words)


def test_the_documents_have_lines_to_type() -> None:
    text = "".join(path.read_text(encoding="utf-8") for path in DOCUMENTS)
    assert sum(len(list(typed.ours(block))) for block in blocks(text, "sh")) > 30
    with pytest.raises(Exception, match="--promt"):
        typed.understood(next(typed.ours("ovenbird generate --promt x")))


SMALL = ["generate", "--prompt", "a house", "--num-inference-steps", "2", "--quiet"]
SYMPTOMS = [
    [*SMALL, "--max-memory", "100MiB"],
    [*SMALL, "--model", "models/sd15"],
    [*SMALL, "--backend", "onnxruntime", "--device", "cuda"],
    [*SMALL, "--device", "gpu"],
    [*SMALL, "--model", "notmodel"],
    [*SMALL, "--model", "damaged"],
    [*SMALL, "--height", "500"],
    [*SMALL, "--output", "a.png"],
    [*SMALL, "--prompt", "a red house and " * 16],
    [*SMALL, "--preset", "fast"],
    [*SMALL, "--num-inference-steps", "1", "--scheduler", "ddim"],
]
ELSEWHERE = {
    "error: unet: the latents are not finite after step # of Euler": "tests/test_pipeline.py",
    "error: onnxruntime is not installed": "tests/test_backends.py",
    'hint: pip install "ovenbird[onnx]"': "tests/test_backends.py",
    "warning: preset fast, which would have int#, takes fp#: "
    "int# is slow without any of amx_int#, avx#_vnni, avx_vnni": "tests/test_choosing.py",
    "warning: the cache /proc/x cannot be written (No such file or directory); going on without it": "test_cache.py",
}
"""Printed lines that other tests provoke."""


def numberless(line: str) -> str:
    return re.sub(r"\d+(\.\d+)?", "#", re.sub(r"'[^']* [^']*'|\[Errno.*", "...", line.strip()))


@pytest.mark.filterwarnings("default")  # as for users, for whom they are no errors
def test_troubleshooting_quotes_what_is_printed(
    root: Path, nestling: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")  # where nobody listens
    monkeypatch.setattr("ovenbird.transfer.BACKOFF_S", 0.0)
    monkeypatch.setattr("ovenbird.machine.instruction_sets", lambda: ["avx512_vnni"])
    (tmp_path / "notmodel").mkdir()
    (tmp_path / "a.png").touch()
    shutil.copytree(nestling / "fp16", tmp_path / "damaged")
    weights = tmp_path / "damaged" / "unet" / "openvino_model.bin"
    weights.write_bytes(b"x" + weights.read_bytes()[1:])
    printed = "".join(CliRunner().invoke(main, words).stderr for words in SYMPTOMS)

    def full(descriptor: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    (tmp_path / "output.png").unlink(missing_ok=True)
    printed += CliRunner().invoke(main, SMALL).stderr
    what, hint = REFUSALS["GatedRepoError"]
    page = "https://huggingface.co/OWNER/NAME"
    printed += f"error: OWNER/NAME {what}\nhint: {hint.format(page=page)}\n"
    known = {numberless(line) for line in printed.splitlines()} | set(ELSEWHERE)
    text = (root / "docs" / "troubleshooting.md").read_text(encoding="utf-8")
    quoted = [line for block in blocks(text, "text") for line in block.splitlines()]
    quoted = [line for line in quoted if line.startswith(("error: ", "hint: ", "warning: "))]
    assert len(quoted) > 20
    for line in quoted:
        assert numberless(line) in known, line
