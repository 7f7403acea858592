"""A measurement on disk: its figures, and the machine and versions they were taken with."""

from __future__ import annotations

import json
import platform
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import click

from ovenbird import __version__, machine

FOLDER = Path(__file__).parent / "records"
PACKAGES = (
    "numpy",
    "openvino",
    "openvino-genai",
    "onnxruntime",
    "onnx",
    "nncf",
    "tokenizers",
    "torch",
    "diffusers",
    "transformers",
    "optimum",
    "optimum-intel",
    "optimum-onnx",
)


def read(name: str) -> dict[str, Any]:
    """The figures of ``records/<name>.json``; empty before the first measurement."""
    path = FOLDER / f"{name}.json"
    figures: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))["figures"] if path.is_file() else {}
    return figures


def write(name: str, figures: dict[str, Any]) -> None:
    """Keep the figures as ``records/<name>.json``."""
    FOLDER.mkdir(exist_ok=True)
    path = FOLDER / f"{name}.json"
    path.write_text(json.dumps({"figures": figures, "machine": machine_facts()}, indent=2) + "\n", encoding="utf-8")
    click.echo(f"record: {path}", err=True)


def machine_facts() -> dict[str, Any]:
    """What figures depend on beside the code."""
    return {
        "cpu": machine.cpu_name(),
        "cores": machine.usable_cores(),
        "instruction_sets": machine.instruction_sets(),
        "python": platform.python_version(),
        "ovenbird": __version__,
        "packages": {name: found for name in PACKAGES if (found := _version(name))},
    }


def _version(name: str) -> str | None:
    try:
        return version(name)
    except PackageNotFoundError:
        return None
