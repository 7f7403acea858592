"""How long an export takes and what it needs: the real command, in a process of its own."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

OVENBIRD = (sys.executable, "-c", "from ovenbird.cli import main; main()")
EXPORTS = {
    "fp16 and int8, IR and ONNX": ("--precision", "fp16,int8"),
    "fp16, IR and ONNX": ("--precision", "fp16"),
    "fp16, IR alone": ("--precision", "fp16", "--format", "ir"),
}
"""What is timed, and the options that ask for it."""


def measure(source: str, options: tuple[str, ...]) -> dict[str, Any]:
    """Export ``source`` into a folder that goes again: seconds, the most memory at once, and each variant's bytes.

    Raises ``CalledProcessError`` when the export fails; its stages are seen on stderr.
    """
    with tempfile.TemporaryDirectory() as folder:
        command = [*OVENBIRD, "export", source, str(Path(folder, "model")), *options, "--json"]
        began = time.perf_counter()
        with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
            assert process.stdout
            told = process.stdout.read()
            _, status, usage = os.wait4(process.pid, 0)
            process.returncode = os.waitstatus_to_exitcode(status)
        seconds = time.perf_counter() - began
        if process.returncode:
            raise subprocess.CalledProcessError(process.returncode, command)
    made = json.loads(told)["folders"]
    return {
        "seconds": round(seconds, 1),
        "peak_bytes": usage.ru_maxrss * 1024,
        "bytes": {variant["precision"]: variant["bytes"] for variant in made},
        "pictures": {variant["precision"]: variant["verification"]["pictures"] for variant in made},
    }
