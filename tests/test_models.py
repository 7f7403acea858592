"""Models by name, by folder, and from the Hub, which a server on this machine plays."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from click.testing import CliRunner
from PIL import Image

pytest.importorskip("huggingface_hub")

import fake_hub
from fake_hub import FakeHub

from ovenbird import Bundle, MissingExtraError, ModelError, Pipeline, Request, RequestError, cli, machine, transfer
from ovenbird.backends import BACKENDS
from ovenbird.choice import Leeway, Measured, Tuning, Way, facts
from ovenbird.models import FORMATS, VOCABULARY, choose_model, names, open_model, open_variants

REPO = "owner/name"
LEAST = ("--prompt", "a red house", "--num-inference-steps", "2")
INDEX = json.dumps({"_class_name": "StableDiffusionPipeline"}).encode()
PARTS = ("text_encoder", "unet", "vae_decoder", "vae_encoder")


@pytest.fixture(autouse=True)
def _own_world(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from huggingface_hub import constants

    for name in ("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN", "HF_HUB_OFFLINE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("OVENBIRD_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    monkeypatch.setattr(constants, "HF_TOKEN_PATH", str(tmp_path / "token"))
    monkeypatch.setattr(transfer, "BACKOFF_S", 0.0)


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeHub]:
    with fake_hub.serve() as server:
        monkeypatch.setenv("HF_ENDPOINT", server.endpoint)
        yield server


@pytest.fixture(scope="module")
def exported(nestling: Path) -> dict[str, bytes]:
    folder = nestling / "fp16"
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def below(place: str, files: dict[str, bytes]) -> dict[str, bytes]:
    return {f"{place}/{name}": content for name, content in files.items()}


def foreign(*graphs: str) -> dict[str, bytes]:
    """A repository of another tool; nothing here reads the graphs."""
    files = {"model_index.json": INDEX, "scheduler/scheduler_config.json": b"{}"}
    files |= {f"tokenizer/{name}": b"{}" for name in ("vocab.json", "merges.txt", "special_tokens_map.json")}
    files |= {f"{part}/config.json": b"{}" for part in (*PARTS, "safety_checker")}
    return files | {f"{part}/{name}": f"{part} {name}".encode() * 99 for part in PARTS for name in graphs}


IR = ("openvino_model.xml", "openvino_model.bin")
ONNX = ("model.onnx", "model.onnx_data")
UNWANTED = {
    ".gitattributes": b"",
    "unet/diffusion_pytorch_model.safetensors": b"torch's",
    "unet/modeling.py": b"raise SystemExit",
    "openvino_config.json": b"{}",
    "text_encoder_3/openvino_model.xml": b"",
    "safety_checker/model.safetensors": b"torch's",
}


def there(bundle: Bundle) -> set[str]:
    return {path.relative_to(bundle.path).as_posix() for path in bundle.path.rglob("*") if path.is_file()}


def test_every_runtime_has_its_formats() -> None:
    assert set(FORMATS) == set(BACKENDS)


def test_a_model_of_the_hub_makes_the_picture_of_the_folder(
    hub: FakeHub, exported: dict[str, bytes], nestling: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    commit = hub.commit(exported | UNWANTED)
    wish = Request(prompt="a red house", seed=1, num_inference_steps=2)
    found = Pipeline.open(REPO)
    shown = capsys.readouterr().err
    assert there(found.bundle) == set(exported)
    assert f"owner/name: asking {hub.endpoint.removeprefix('http://')} for main ... " in shown
    assert f"note: owner/name main is commit {commit}\n" in shown and "unet/openvino_model.bin (" in shown
    expected = Pipeline.open(nestling / "fp16").generate(wish).images[0]
    assert found.generate(wish).images[0].tobytes() == expected.tobytes()


def test_the_second_time_a_branch_costs_one_request_and_a_commit_none(
    hub: FakeHub, exported: dict[str, bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    commit = hub.commit(exported)
    first = open_model(REPO)
    hub.seen.clear()
    monkeypatch.setattr(transfer.File, "is_at", lambda *_: pytest.fail("hashed again"))
    assert open_model(REPO) == open_model(f"{REPO}@main") == first
    assert hub.names() == ["metadata"] * 2
    hub.seen.clear()
    assert open_model(f"{REPO}@{commit}") == open_model(REPO, offline=True) == first
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    assert open_model(REPO) == first
    assert hub.seen == []


def test_a_tokenizer_of_the_hub_reads_prompts_as_its_folder_does(
    hub: FakeHub, nestling: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    own = {name: (nestling / "fp16" / "tokenizer" / name).read_bytes() for name in VOCABULARY}
    letters = own | {"merges.txt": b"#version: 0.2\n"}
    (tmp_path / "words").mkdir()
    for name, content in letters.items():
        (tmp_path / "words" / name).write_bytes(content)

    def drawn(*words: str) -> tuple[bytes, str]:
        found = CliRunner().invoke(cli.main, ["generate", *LEAST, "--seed", "1", "--quiet", *words])
        assert found.exit_code == 0, found.output
        with Image.open(found.stdout.strip()) as picture:
            return picture.tobytes(), found.stderr

    commit = hub.commit(letters | UNWANTED)
    expected, _ = drawn("--tokenizer", "words")
    assert drawn()[0] != expected
    for words in (["--tokenizer", REPO], ["--tokenizer", f"{REPO}@{commit}"], ["--tokenizer", REPO, "--offline"]):
        picture, said = drawn(*words)
        assert picture == expected and "another --tokenizer" not in said
    assert set(hub.names()) == {"metadata", *VOCABULARY}
    hub.commit(below("tokenizer", own))  # a model with one
    assert drawn("--tokenizer", REPO)[0] == drawn()[0]


@pytest.mark.parametrize("content", [{"README.md": b"clip"}, {"vocab.json": b"{}"}])
def test_a_tokenizer_that_is_not_there_is_refused(hub: FakeHub, content: dict[str, bytes]) -> None:
    hub.commit(content)
    with pytest.raises(ModelError, match=r"^the repository has no (vocab\.json|merges\.txt)"):
        Pipeline.open(tokenizer=REPO)
    with pytest.raises(RequestError, match=r"^tokenizer: owner/name .* never downloaded") as caught:
        Pipeline.open(tokenizer=REPO, offline=True)
    assert str(caught.value.hint).startswith("a model has its own tokenizer: leave it out; else run once without")


def test_offline_needs_neither_the_network_nor_the_packages_for_it(hub: FakeHub, exported: dict[str, bytes]) -> None:
    hub.commit(exported)
    open_model(REPO)
    code = (
        "import sys; sys.modules |= dict.fromkeys(['requests', 'huggingface_hub', 'urllib3'])\n"
        f"from ovenbird.models import open_model; print(open_model({REPO!r}, offline=True).name)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "nestling\n"


def test_without_the_packages_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("huggingface_hub", "huggingface_hub.errors"):
        monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(
        MissingExtraError, match=r"there is no folder models/typo, .* huggingface_hub.* is not"
    ) as caught:
        open_model("models/typo")
    assert caught.value.hint == 'pip install "ovenbird[hub]"'


def test_m8_a_branch_that_moved_is_followed_and_a_commit_stays(hub: FakeHub, exported: dict[str, bytes]) -> None:
    before = hub.commit(exported)
    first = open_model(REPO)
    config = b'{"_class_name": "DDIMScheduler"}'
    hub.commit(foreign(*IR) | {"scheduler/scheduler_config.json": config})
    second = open_model(REPO)
    assert second.scheduler_config == json.loads(config) and second.path != first.path
    assert open_model(f"{REPO}@{before}") == first
    assert open_model(REPO, offline=True) == second


def test_a_folder_of_that_name_wins(hub: FakeHub, exported: dict[str, bytes], nestling: Path, tmp_path: Path) -> None:
    hub.commit(exported)
    (tmp_path / "owner").mkdir()
    (tmp_path / "owner" / "name").symlink_to(nestling)
    assert open_model(REPO).path == Path(REPO) / "fp16"
    assert hub.seen == []


@pytest.mark.parametrize("model", ["sd16", "./owner/name", "/owner/name", Path("owner/name"), "a/b/c", "a--b/c"])
def test_what_is_no_name_of_the_hub_is_not_asked_for(hub: FakeHub, model: str | Path) -> None:
    with pytest.raises(RequestError, match="is neither a folder"):
        open_model(model)
    assert hub.seen == []


def test_a_mistyped_folder_is_said_to_be_none(hub: FakeHub) -> None:
    with pytest.raises(RequestError, match="models/typo does not exist") as caught:
        open_model("models/typo")
    assert "no folder here either" in str(caught.value.hint)


def test_of_several_variants_one_is_fetched(hub: FakeHub, exported: dict[str, bytes]) -> None:
    other = {"model_index.json": INDEX, "ovenbird.json": b'{"format": 2}'}
    commit = hub.commit(below("fp16", exported) | below("int8", other) | {"README.md": b""})
    found = open_model(REPO)
    assert (found.precision, found.path.name, there(found)) == ("fp16", "fp16", set(exported))
    assert {name.split("/")[0] for name in hub.names()} == {"metadata", "fp16"}
    assert open_model(f"{REPO}@{commit}", "fp16") == found
    with pytest.raises(RequestError, match="owner/name has no fp32") as caught:
        open_model(REPO, "fp32")
    assert caught.value.hint == "it has: fp16, int8"
    with pytest.raises(RequestError, match="owner/name main int8 for openvino was never downloaded completely"):
        open_model(REPO, "int8", offline=True)
    with pytest.raises(ModelError, match="format 2"):
        open_model(REPO, "int8")
    assert open_model(REPO, offline=True) == found
    assert names() == ["nestling", REPO]
    hub.commit(exported | {"README.md": b"newer"})
    open_model(REPO)
    assert names() == ["nestling", REPO, f"{REPO}@{commit}"]
    assert [open_variants(name)[0].path.parts[-2:-1] for name in names()[1:] if "@" in name] == [(commit,)]


@pytest.mark.parametrize(
    ("graphs", "runtime", "expected"),
    [
        (IR, "openvino", IR),
        ((*IR, *ONNX), "openvino", IR),
        ((*IR, *ONNX), "onnxruntime", ONNX),
        (ONNX, "openvino", ONNX),
        (("model.onnx", "weights.pb"), "onnxruntime", ("model.onnx", "weights.pb")),
    ],
)
def test_of_a_foreign_repository_the_runtime_gets_what_it_reads(
    hub: FakeHub, graphs: tuple[str, ...], runtime: str, expected: tuple[str, ...]
) -> None:
    hub.commit(foreign(*graphs) | UNWANTED)
    found = open_model(REPO, runtime=runtime)
    assert there(found) == set(foreign(*expected))
    assert (found.name, found.manifest) == (REPO, None)
    assert found.key is not None and len(found.key) == 64
    assert open_model(REPO, runtime=runtime, offline=True) == found
    found.verify_once()


def test_the_key_of_a_foreign_repository_is_that_of_its_bytes(hub: FakeHub) -> None:
    hub.commit(foreign(*IR))
    first = open_model(REPO)
    hub.commit(foreign(*IR) | {"unet/openvino_model.bin": b"other"})
    second = open_model(REPO)
    assert first.key != second.key
    hub.commit(foreign(*IR), "another")
    assert open_model(f"{REPO}@another").key == first.key


def test_another_precision_is_refused_before_its_weights_travel(hub: FakeHub) -> None:
    graph = b'<data element_type="f16" shape="1" offset="0" size="2" />'
    hub.commit(foreign(*IR) | {"unet/openvino_model.xml": graph})
    with pytest.raises(RequestError, match="is fp16, not int8"):
        open_model(REPO, "int8")
    assert not hub.names("cdn")
    assert open_model(REPO, "fp16").precision == "fp16"


def test_another_runtime_fetches_what_it_lacks(hub: FakeHub) -> None:
    hub.commit(foreign(*IR, *ONNX))
    open_model(REPO)
    hub.seen.clear()
    found = open_model(REPO, runtime="onnxruntime")
    assert there(found) == set(foreign(*IR, *ONNX))
    assert {name.split("/")[-1] for name in hub.names()} == {"metadata", *ONNX}


@pytest.mark.parametrize(
    ("files", "runtime", "message"),
    [
        ({}, "openvino", "owner/name has no model_index.json"),
        (foreign(), "openvino", "no text_encoder/openvino_model.xml or text_encoder/model.onnx"),
        (
            foreign(*IR),
            "onnxruntime",
            "no text_encoder/model.onnx: .* or not for onnxruntime",
        ),
        (foreign(IR[0]), "openvino", "owner/name has no text_encoder/openvino_model.bin"),
        ({"model_index.json": b'{"_class_name": "FluxPipeline"}'}, "openvino", "a FluxPipeline pipeline is not"),
        ({"model_index.json": b"[]"}, "openvino", "holds a list"),
        ({"model_index.json": b" " * (17 << 20)}, "openvino", "model_index.json is larger than 16 MiB"),
    ],
)
def test_what_cannot_be_opened_is_refused_before_its_weights_travel(
    hub: FakeHub, files: dict[str, bytes], runtime: str, message: str
) -> None:
    hub.commit(files | UNWANTED)
    with pytest.raises(ModelError, match=message):
        open_model(REPO, runtime=runtime)
    assert not hub.names("cdn")


@pytest.mark.parametrize("name", ["unet/evil.py", "evil.json", "unet/sub/config.json", "UNET/config.json"])
def test_m7_a_manifest_may_list_what_an_export_gives_and_nothing_else(
    hub: FakeHub, exported: dict[str, bytes], name: str
) -> None:
    manifest = json.loads(exported["ovenbird.json"])
    manifest["files"][name] = {"size": 1, "sha256": ""}
    hub.commit(exported | {"ovenbird.json": json.dumps(manifest).encode(), name: b"x"})
    with pytest.raises(ModelError, match="which is no file of an exported model"):
        open_model(REPO)
    assert name not in hub.names()


def test_m9_what_was_damaged_on_the_disk_is_fetched_again(hub: FakeHub) -> None:
    commit = hub.commit(foreign(*IR))
    found = open_model(REPO)
    for model in (REPO, f"{REPO}@{commit}"):
        (found.path / "unet" / IR[1]).write_bytes(b"?")
        with pytest.raises(ModelError, match="is missing or damaged"):
            open_model(REPO, offline=True)
        hub.seen.clear()
        assert open_model(model) == found
        assert hub.names() == ["metadata", f"unet/{IR[1]}"]
    (found.path / "unet" / IR[1]).unlink()
    assert open_model(REPO) == found and there(found) == set(foreign(*IR))


def test_one_that_breaks_is_gone_on_with(hub: FakeHub) -> None:
    hub.commit(foreign(*IR) | {"unet/openvino_model.bin": bytes(range(256)) * 500})
    hub.faults["unet/openvino_model.bin"] = [fake_hub.cut(70_000), fake_hub.status(403)]
    with pytest.raises(RequestError, match="is refused"):
        open_model(REPO)
    with pytest.raises(RequestError, match="never downloaded completely"):
        open_model(REPO, offline=True)
    hub.seen.clear()
    open_model(REPO)
    assert hub.ranges("unet/openvino_model.bin") == ["bytes=70000-"]
    assert "unet/openvino_model.xml" not in hub.names()


def test_the_command_takes_the_name_and_says_nothing_when_told_to(hub: FakeHub, exported: dict[str, bytes]) -> None:
    hub.commit({name: content for name, content in exported.items() if name != "ovenbird.json"})
    words = ["generate", "--prompt", "a red house", "--num-inference-steps", "1", "--height", "64", "--width", "64"]
    words += ["--model", REPO, "--quiet"]
    first = CliRunner().invoke(cli.main, words)
    assert (first.exit_code, first.stdout, first.stderr) == (0, "output.png\n", "")
    hub.seen.clear()
    again = CliRunner().invoke(cli.main, [*words[:-1], "--offline", "--report", "report.json"])
    assert again.exit_code == 0 and hub.seen == []
    report = json.loads(Path("report.json").read_text())
    assert (report["weights"], set(report["compile_cache"].values())) == ("fp16", {"hit"})
    assert set(report["devices"].values()) == {"cpu"}
    kept = CliRunner().invoke(cli.main, ["cache"]).output
    assert "owner--name--exported/" in kept and "3 compiled models" in kept


def test_a_terminal_sees_how_far_a_file_is(
    hub: FakeHub, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from ovenbird import progress

    monkeypatch.setattr(progress, "AGAIN_S", -1.0)
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True, raising=False)
    hub.commit(foreign(*IR) | {"unet/openvino_model.bin": bytes(1 << 20)})
    open_model(REPO)
    line = next(line for line in capsys.readouterr().err.split("\n") if "unet/openvino_model.bin" in line)
    shares = [text.split("... ")[1] for text in line.split("\r")]
    assert len(shares) > 5 and shares[-1].startswith("100% ") and shares[-1].endswith(" s")


def test_the_packages_of_the_hub_are_read_when_it_is_asked() -> None:
    code = "import sys, ovenbird.cli; print({'requests', 'huggingface_hub', 'urllib3'} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("ONEDNN_MAX_CPU_ISA", raising=False)
    monkeypatch.setattr(machine, "instruction_sets", lambda: ["avx512_vnni"])


def int8_of(exported: dict[str, bytes]) -> dict[str, bytes]:
    manifest = json.loads(exported["ovenbird.json"]) | {"precision": "int8"}
    return exported | {"ovenbird.json": json.dumps(manifest).encode()}


def test_the_variant_that_the_processor_is_quick_at_is_fetched(
    hub: FakeHub, exported: dict[str, bytes], quick: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    commit = hub.commit(below("fp16", exported) | below("int8", int8_of(exported)))
    found, choice = choose_model(REPO, Leeway())
    assert (found.precision, found.path.name, str(choice)) == ("int8", "int8", "int8: the processor has avx512_vnni")
    assert {name.split("/")[0] for name in hub.names()} == {"metadata", "int8"}
    assert choose_model(f"{REPO}@{commit}", Leeway()) == choose_model(REPO, Leeway(), offline=True) == (found, choice)
    monkeypatch.setattr(machine, "instruction_sets", lambda: ["avx2"])
    assert choose_model(REPO, Leeway(), offline=True)[0] == found  # the other one is not here
    slow, why = choose_model(REPO, Leeway())
    assert slow.precision == "fp16" and "int8 is slow without" in str(why)
    assert [bundle.precision for bundle in open_variants(REPO)] == ["fp16", "int8"]


def test_of_a_repository_without_variants_there_is_nothing_to_choose(
    hub: FakeHub, exported: dict[str, bytes], quick: None
) -> None:
    hub.commit(exported)
    with pytest.raises(RequestError, match="owner/name main was never downloaded completely"):
        open_variants(REPO)
    found, choice = choose_model(REPO, Leeway())
    assert found == open_model(REPO) and str(choice).startswith("fp16: the model has no int8")
    assert open_variants(REPO) == [found]


def test_what_was_measured_of_downloaded_variants_is_used(
    hub: FakeHub, exported: dict[str, bytes], quick: None
) -> None:
    hub.commit(below("fp16", exported) | below("int8", int8_of(exported)))
    bundles = [open_model(REPO, name) for name in ("fp16", "int8")]
    measured = [Measured(Way(name, "openvino", 1), "f32", (took,)) for name, took in (("fp16", 1.0), ("int8", 2.0))]
    there = {bundle.precision: bundle.path for bundle in bundles}
    assert Tuning(facts(there), "2026-11-21", 128, tuple(measured)).write()
    for offline in (False, True):
        found, choice = choose_model(REPO, Leeway(), offline=offline)
        assert (found, choice.threads) == (bundles[0], 1)
        assert str(choice).endswith("measured by ovenbird tune on 2026-11-21, 2.00x faster than int8")
