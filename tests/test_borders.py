"""The borders of the house: who may import whom, what is public, what ships."""

from __future__ import annotations

import ast
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

import ovenbird

FORBIDDEN = {"torch", "transformers", "diffusers", "optimum", "pickle", "onnx", "nncf", "ovenbird_export"}

# A module may import from rows below its own, or its own.
LAYERS = [
    {"cli"},
    {"commands"},
    {"pipeline", "settings", "reporting"},
    {"jobs", "supervisor"},
    {"records"},
    {"autoencoder", "budget", "tuning"},
    {"canvas", "stages", "models"},
    {"families", "schedulers", "vae", "tiles", "safety", "text", "embeddings", "metadata", "recall", "infotext"},
    {"kinds"},
    {"scheduler_config", "plans", "predictions"},
    {"solvers"},
    {"result"},
    {"averages", "denoiser"},
    {"memory", "presets", "choice"},
    {"backends", "noise", "bundle", "request"},
    {"images", "tensors", "hub", "compiled", "component_config", "journal"},
    {"transfer"},
    {"errors", "timing", "machine", "cache", "prompts", "sizes", "disk", "mapped", "progress", "pages"},
]


def imports(path: Path) -> set[str]:
    found: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            found |= {f"{node.module}.{alias.name}" for alias in node.names} | {node.module}
    return found


def engine_files(root: Path) -> list[Path]:
    return sorted((root / "engine" / "ovenbird").rglob("*.py"))


def test_the_engine_never_names_what_belongs_to_the_export(root: Path) -> None:
    for path in engine_files(root):
        # ONNX Runtime has no way to change a graph; what adds rows to one says so where it is missing.
        allowed = {"onnx"} if path.name == "onnxruntime.py" else set()
        assert not {name.split(".")[0] for name in imports(path)} & FORBIDDEN - allowed, path


def layer(name: str) -> int:
    return next(index for index, names in enumerate(LAYERS) if name in names)


def test_imports_point_one_way(root: Path) -> None:
    for path in engine_files(root):
        own = path.relative_to(root / "engine" / "ovenbird").parts[0].removesuffix(".py")
        if own == "__init__":
            continue
        for name in imports(path):
            parts = name.split(".")
            if parts[0] == "ovenbird" and len(parts) > 1 and parts[1] not in ovenbird.__all__:
                assert layer(parts[1]) >= layer(own), f"{path.name} imports {name}"


def test_the_converter_uses_only_the_lower_rows(root: Path) -> None:
    for path in (root / "export").rglob("*.py"):
        used = {name.split(".")[1] for name in imports(path) if name.startswith("ovenbird.")}
        assert used <= {
            "bundle",
            "cache",
            "errors",
            "backends",
            "pipeline",
            "request",
            "result",
            "schedulers",
            "hub",
            "models",
            "transfer",
            "disk",
            "progress",
            "pages",
            "text",
            "__version__",
        }, path


def test_all_is_what_is_public() -> None:
    public = {
        name for name, value in vars(ovenbird).items() if not name.startswith("_") and hasattr(value, "__module__")
    }
    assert set(ovenbird.__all__) - {"__version__"} == public


def test_a_whole_run_loads_no_torch(tmp_path: Path) -> None:
    code = (
        "import sys; from ovenbird.cli import main\n"
        "words = ['generate', '--prompt', 'a red house', '--num-inference-steps', '2', '--output', 'a.png']\n"
        "main(words, standalone_mode=False)\n"
        f"print(sorted({FORBIDDEN!r} & set(sys.modules) - {{'pickle'}}))"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "[]"


@pytest.fixture(scope="module")
def wheel(root: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("wheel")
    command = [sys.executable, "-m", "pip", "wheel", "--no-deps", "--quiet", "--wheel-dir", str(folder), str(root)]
    subprocess.run(command, check=True, capture_output=True)
    return next(folder.glob("*.whl"))


def test_the_wheel_ships_two_names(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        names = {name.split("/")[0] for name in archive.namelist()}
        typed = {name for name in archive.namelist() if name.endswith("py.typed")}
    assert {name for name in names if not name.endswith(".dist-info")} == {"ovenbird", "ovenbird_export"}
    assert typed == {"ovenbird/py.typed", "ovenbird_export/py.typed"}


def test_the_wheel_makes_a_picture_from_another_folder(wheel: Path, tmp_path: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(tmp_path / "site")
    code = (
        f"import sys; sys.path.insert(0, {str(tmp_path / 'site')!r})\n"
        "import ovenbird; assert 'site' in ovenbird.__file__, ovenbird.__file__\n"
        "from ovenbird.cli import main\n"
        "main(['generate', '--prompt', 'a red house', '--num-inference-steps', '2'])"
    )
    subprocess.run([sys.executable, "-c", code], cwd=tmp_path, check=True, capture_output=True)
    assert (tmp_path / "output.png").stat().st_size > 1000
