"""Whether a graph may be read by a runtime, which does so in native code: first by a look at it, then on trial."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Collection
from pathlib import Path

from ovenbird.backends.ir import Ir
from ovenbird.backends.wire import Onnx
from ovenbird.bundle import IR, MANIFEST, ONNX, read_json
from ovenbird.errors import ModelError

TRIAL_SECONDS = 300
TRIAL_BYTES = 8 << 30
"""Of address space, beside five times the files: runtimes reserve much of it that they never use."""
_TRIAL = """
import sys
runtime, path, limit = sys.argv[1:]
try:
    import resource
except ImportError:  # Windows; there is the time, then
    pass
else:
    resource.setrlimit(resource.RLIMIT_AS, (int(limit), int(limit)))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
if runtime == "openvino":
    sys.modules["openvino_telemetry"] = None  # see ovenbird.backends
    import openvino
    openvino.Core().read_model(path)
else:
    import onnxruntime
    onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
"""


def admit(path: Path, runtime: str, *, listed: Collection[str] = (), allow_foreign: bool = False) -> None:
    """Raises ``ModelError`` for a graph that no runtime should see.

    Weights outside of its folder, names of files, declared documents, tensors larger than their bytes: nothing allows
    these.  What no export of Stable Diffusion has (unknown operators, branches, loops, functions) is refused unless
    ``allow_foreign``, and is then read by a process of its own first, with little memory and time.  ``listed`` are
    files beside it whose hashes were compared.
    """
    try:
        strange = Ir(path).check() if path.suffix == ".xml" else Onnx(path, listed).check()
    except OSError as error:
        raise ModelError(f"{path} cannot be read: {error.strerror}") from error
    if not strange:
        return
    if not allow_foreign:
        some = ", ".join(f"{name!a}" for name in sorted(strange)[:4]) + (" ..." if len(strange) > 4 else "")
        raise ModelError(
            f"{path} is refused: it has {some}, which no export of Stable Diffusion has",
            hint="if you trust who made it: --allow-foreign-ir",
        )
    _try(path, runtime)


def hashed(folder: Path, cache_key: str | None) -> set[str]:
    """The files of a component that the manifest lists; none without the key that tells that it was compared."""
    manifest = folder.parent / MANIFEST
    if cache_key is None or not manifest.is_file():
        return set()
    paths = map(Path, read_json(manifest).get("files", {}))
    return {path.name for path in paths if path.parent.name == folder.name}


def _try(path: Path, runtime: str) -> None:
    """Read it in another process.  Raises ``ModelError`` if that one does not end well."""
    size = sum((path.parent / name).stat().st_size for name in (*IR, *ONNX) if (path.parent / name).is_file())
    # -P: not the folder that the user is in, which may be the model's, and hold an openvino.py.
    command = [sys.executable, "-P", "-c", _TRIAL, runtime, str(path.resolve()), str(TRIAL_BYTES + 5 * size)]
    try:
        done = subprocess.run(
            command, timeout=TRIAL_SECONDS, stdin=subprocess.DEVNULL, capture_output=True, check=False
        )
    except subprocess.TimeoutExpired:
        raise ModelError(f"{path}: {runtime} did not read it in {TRIAL_SECONDS} s") from None
    if done.returncode:
        lines = done.stderr.decode(errors="replace").strip().splitlines() or [f"it ended with {done.returncode}"]
        raise ModelError(f"{path}: {runtime} cannot read it, tried in a process of its own: {lines[-1][:200]}")
