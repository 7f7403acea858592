"""A whole run, watched: which files it opens, and that nothing of a hostile model folder is run."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path
from typing import Any

import pytest

WATCHED = """
import json, os, sys
KINDS = ("open", "socket", "subprocess", "exec", "compile", "import", "pickle", "os", "shutil", "urllib", "http")
SEEN = []

def plain(value):
    if isinstance(value, bytes):
        return os.fsdecode(value)
    return value if isinstance(value, str | int | None) else getattr(value, "co_filename", repr(value))

def hook(event, args):
    if event.split(".")[0] in KINDS:
        SEEN.append([event, [plain(value) for value in args]])

sys.addaudithook(hook)
sys.argv = ["ovenbird", *sys.argv[1:]]
from ovenbird.cli import main
main(standalone_mode=False)
sys.stdout.write(json.dumps(SEEN))
"""
HARMFUL = "import pathlib; pathlib.Path({canary!r}).write_text('run')\n"
PICKLE = b"cposix\nsystem\n(S'touch canary'\ntR."
MADE = ("os.mkdir", "os.rename", "os.link", "os.symlink", "os.remove", "os.rmdir", "os.chmod", "os.truncate")


@pytest.fixture
def hostile(nestling: Path, tmp_path: Path) -> Path:
    """nestling as a folder of nobody's, with all that other programs would run."""
    folder, harmful = tmp_path / "model", HARMFUL.format(canary=str(tmp_path / "canary"))
    shutil.copytree(nestling / "fp16", folder, ignore=shutil.ignore_patterns("ovenbird.json"))
    for place in (folder, *(path for path in folder.iterdir() if path.is_dir())):
        for name in ("__init__", "pipeline", "modeling", "numpy", "openvino", "conftest", "sitecustomize"):
            (place / f"{name}.py").write_text(harmful)
        for name in (
            "pytorch_model.bin",
            "diffusion_pytorch_model.bin",
            "model.ckpt",
            "model.pt",
            "openvino_model.pkl",
        ):
            (place / name).write_bytes(PICKLE)
        for path in place.glob("*.json"):
            told = json.loads(path.read_text())
            if path.name not in ("vocab.json", "tokenizer.json", "scheduler_config.json"):  # that last is refused
                told |= {
                    "auto_map": {"AutoModel": "modeling.Evil"},
                    "custom_pipeline": "pipeline",
                    "_attn_implementation": "evil/kernels",
                    "_attn_implementation_internal": "evil/kernels",
                    "trust_remote_code": True,
                    "chat_template": "{{ evil.__class__ }}",
                }
                path.write_text(json.dumps(told))
    return folder


def traced(log: Path) -> list[str]:
    """What shows the files that native code opens, too, where there is such a thing and it may be used."""
    command = ["strace", "-f", "-qq", "-e", "trace=open,openat,creat,connect,bind,execve", "-o", str(log)]
    works = shutil.which("strace") and subprocess.run([*command, "true"], capture_output=True, check=False).returncode
    return command if works == 0 else []


def test_m6_i11_a_run_opens_what_it_may_and_runs_nothing_of_the_folder(
    hostile: Path, tmp_path: Path, root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    work, home, temp, log = (tmp_path / name for name in ("work", "home", "temp", "log"))
    for folder in (work, home, temp):
        folder.mkdir()
    (home / "secret").write_text("secret")
    for name in ("CI", "TF_BUILD", "JENKINS_URL", "XDG_CACHE_HOME"):  # with which some packages behave better
        monkeypatch.delenv(name, raising=False)
    cache = Path(os.environ["OVENBIRD_CACHE"])
    words = ["generate", "--model", str(hostile), "--prompt", "../secret $(touch canary) `touch canary` %s {0}"]
    done = subprocess.run(
        [*traced(log), sys.executable, "-c", WATCHED, *words, "--num-inference-steps", "1", "--width", "64",
         "--height", "64", "--quiet", "--seed", "1"],
        cwd=work, env=dict(os.environ) | {"HOME": str(home), "TMPDIR": str(temp)}, capture_output=True, text=True,
        check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    path, told = done.stdout.splitlines()
    assert path == "output.png" and [path.name for path in work.iterdir()] == ["output.png"]
    assert not list(tmp_path.rglob("canary")) and [path.name for path in home.iterdir()] == ["secret"]

    writable = [work, cache, temp, Path("/dev/null"), Path("/dev/tty")]
    readable = [*writable, hostile, *map(Path, ("/proc", "/sys", "/dev", "/etc", "/lib", "/lib64", "/usr", "/opt"))]
    readable += [Path(path).resolve() for path in {*sys.path, *sysconfig.get_paths().values()} if path]
    readable += [Path(path) for path in {sys.prefix, sys.base_prefix, sys.executable, str(root)}]
    check_events(json.loads(told), work, hostile, writable, readable)
    if log.exists():
        check_trace(log.read_text(errors="replace"), work, hostile, writable, readable)


def check_events(events: list[Any], work: Path, model: Path, writable: list[Path], readable: list[Path]) -> None:
    """What Python itself did."""
    kinds = {event for event, _ in events}
    assert {"open", "import", "exec"} <= kinds
    strangers = ("subprocess.", "pickle.", "urllib.", "http.", "shutil.")
    forbidden = {event for event in kinds if event.startswith(strangers)}
    forbidden |= kinds & {"os.system", "os.exec", "os.fork", "os.forkpty", "os.posix_spawn", "os.spawn", "os.startfile"}
    sockets = {event for event in kinds if event.startswith("socket.")}
    assert not forbidden and sockets <= {"socket.__new__"}, (forbidden, sockets)
    for event, args in events:
        if event == "open" and isinstance(args[0], str):
            may_be_opened(work / args[0], args[2] & 0o3 != 0, model, writable, readable)
        elif event in MADE:
            may_be_opened(work / args[0], True, model, writable, readable)
        elif event in ("exec", "compile", "import"):
            assert not any(isinstance(value, str) and str(model) in value for value in args), (event, args)
        elif event == "socket.__new__":
            assert args[1] == 1, "only a pair of this process"  # AF_UNIX


def check_trace(log: str, work: Path, model: Path, writable: list[Path], readable: list[Path]) -> None:
    """What native code did, too; of what did not succeed only connections count."""
    opened = re.findall(r'(?:open|openat|creat)\((?:AT_FDCWD, )?"([^"]+)", (\w[\w|]*).*\) = \d+', log)
    assert any(name.endswith("unet/openvino_model.bin") for name, _ in opened)
    for name, flags in opened:
        may_be_opened(work / name, bool(re.search("O_WRONLY|O_RDWR|O_CREAT", flags)), model, writable, readable)
    assert not re.findall(r"(?:connect|bind)\(.*AF_INET.*", log)
    assert len(re.findall(r"execve\(.*\) = 0", log)) == 1


def may_be_opened(path: Path, to_write: bool, model: Path, writable: list[Path], readable: list[Path]) -> None:
    path = Path(os.path.normpath(path))
    places = writable if to_write else readable
    bytecode = "__pycache__" in path.parts and path.name.endswith((".pyc", tuple("0123456789")))
    fine = bytecode and not path.is_relative_to(model)
    fine |= any(path.is_relative_to(place) or path.is_relative_to(place.resolve()) for place in places)
    assert fine, f"{'written' if to_write else 'read'}: {path}"
    if path.is_relative_to(model) and not path.is_dir():
        assert path.suffix in (".json", ".txt", ".xml", ".bin"), path
        assert path.name not in ("pytorch_model.bin", "diffusion_pytorch_model.bin"), path
