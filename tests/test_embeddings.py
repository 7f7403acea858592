"""Textual inversion: files and words are checked before any model is read; both runtimes look the new rows up."""

from __future__ import annotations

import hashlib
import json
import pickle
import struct
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner
from PIL import Image

from ovenbird import Bundle, ModelError, Pipeline, Request, RequestError
from ovenbird.backends import BACKENDS, Rows, create
from ovenbird.cli import main
from ovenbird.embeddings import MOST_FILES, MOST_VECTORS, Embeddings
from ovenbird.families import read_embeddings

WIDTHS = {"text_encoder": 4, "text_encoder_2": 6}
KNOWN = 806


def save(path: Path, **tensors: Any) -> Path:
    """A safetensors file in float32."""
    arrays = {name: np.asarray(array, np.float32) for name, array in tensors.items()}
    header, data = {}, b""
    for name, array in arrays.items():
        offsets = [len(data), len(data) + array.nbytes]
        header[name] = {"dtype": "F32", "shape": array.shape, "data_offsets": offsets}
        data += array.tobytes()
    text = json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(text)) + text + data)
    return path


def vectors(*shape: int) -> Any:
    return np.random.default_rng(0).standard_normal(shape).astype(np.float32)


def bundle(nestling: Path, folder: Path, family: str) -> Bundle:
    """A folder with nothing but what is read before a model is."""
    for component, width in WIDTHS.items():
        tokenizer = component.replace("text_encoder", "tokenizer")
        (folder / tokenizer).symlink_to(nestling / "fp16" / "tokenizer", target_is_directory=True)
        (folder / component).mkdir()
        config = {"hidden_size": width, "vocab_size": KNOWN}
        (folder / component / "config.json").write_text(json.dumps(config))
    return Bundle(folder, "test", family, "fp32", None)


@pytest.fixture
def sd(nestling: Path, tmp_path: Path) -> Bundle:
    return bundle(nestling, tmp_path, "sd")


@pytest.fixture
def sdxl(nestling: Path, tmp_path: Path) -> Bundle:
    return bundle(nestling, tmp_path, "sdxl")


def test_words_get_the_ids_behind_the_vocabulary_in_order(sd: Bundle, tmp_path: Path) -> None:
    cat, dog = vectors(3, 4), vectors(4)
    files = [save(tmp_path / "learned_embeds.safetensors", **{"<cat>": cat}), save(tmp_path / "dog.safetensors", d=dog)]
    found = read_embeddings(sd, [files[0], f"{files[1]}:<dog>"])
    ids = {"<cat>": (806, 807, 808), "<cat>_1": (807,), "<cat>_2": (808,), "<dog>": (809,)}
    assert found.tokens("text_encoder") == ids
    rows = found.rows("text_encoder")
    assert rows and rows.table == (KNOWN, 4) and found.rows("unet") is None
    np.testing.assert_array_equal(rows.values, [*cat, dog])
    assert [(fact["word"], fact["file"]) for fact in found.facts()] == [
        ("<cat>", "learned_embeds.safetensors"),
        ("<dog>", "dog.safetensors"),
    ]
    assert all(len(fact["sha256"]) == 64 for fact in found.facts())


def test_without_files_nothing_is_added(sd: Bundle) -> None:
    found = read_embeddings(sd, ())
    assert found == Embeddings() and found.tokens("text_encoder") == {} and found.rows("text_encoder") is None


def test_the_web_uis_files_are_named_by_themselves(sd: Bundle, tmp_path: Path) -> None:
    path = save(tmp_path / "bad-hands-5.safetensors", emb_params=vectors(2, 4))
    assert [word.word for word in read_embeddings(sd, path).words] == ["bad-hands-5"]
    assert [word.word for word in read_embeddings(sd, {"<bad>": path}).words] == ["<bad>"]


def test_sdxls_files_have_vectors_for_both_encoders(sdxl: Bundle, tmp_path: Path) -> None:
    first, second = vectors(2, 4), vectors(2, 6)
    found = read_embeddings(sdxl, [save(tmp_path / "zqx.safetensors", clip_g=second, clip_l=first)])
    for component, expected in (("text_encoder", first), ("text_encoder_2", second)):
        rows = found.rows(component)
        assert rows is not None
        np.testing.assert_array_equal(rows.values, expected)
        assert found.tokens(component) == {"zqx": (806, 807), "zqx_1": (807,)}


BAD = {
    "another width": ({"<x>": vectors(2, 5)}, "vectors of 5 numbers; those of test's text_encoder have 4"),
    "no vector": ({"<x>": vectors(0, 4)}, "holds (0, 4), not 1 to 75 vectors"),
    "many vectors": ({"<x>": vectors(MOST_VECTORS + 1, 4)}, "not 1 to 75 vectors"),
    "a cube": ({"<x>": vectors(1, 1, 4)}, "not 1 to 75 vectors"),
    "a number": ({"<x>": 1.0}, "not 1 to 75 vectors"),
    "not a number": ({"<x>": [[1, 2, np.nan, 3]]}, "not finite"),
    "infinity": ({"<x>": [[1, 2, np.inf, 3]]}, "not finite"),
    "two words": ({"<x>": vectors(4), "<y>": vectors(4)}, "holds '<x>', '<y>'; for this family"),
    "no word": ({}, "holds ; for this family"),
    "10^5 words": ({f"<{n}>": np.zeros(0) for n in range(10**5)}, "100000 tensors are more than 1000"),
    "many words": ({f"<{n}>": vectors(4) for n in range(9)}, "'<0>', '<1>', '<2>', '<3>' ...; for this family"),
    "SDXL's": ({"clip_l": vectors(4), "clip_g": vectors(6)}, "'clip_g', 'clip_l'; for this family"),
}


@pytest.mark.parametrize("kind", BAD)
def test_m11_a_file_that_does_not_fit_is_refused(sd: Bundle, tmp_path: Path, kind: str) -> None:
    tensors, message = BAD[kind]
    with pytest.raises(ModelError) as caught:
        read_embeddings(sd, [save(tmp_path / "x.safetensors", **tensors)])
    assert message in str(caught.value) and len(str(caught.value)) < 300


@pytest.mark.parametrize(
    ("tensors", "message"),
    [
        ({"<x>": vectors(4)}, "for this family of models it would hold 'clip_g', 'clip_l'"),
        ({"clip_l": vectors(2, 4), "clip_g": vectors(1, 6)}, "not as many vectors"),
        ({"clip_l": vectors(1, 4), "clip_g": vectors(1, 4)}, "test's text_encoder_2 have 6"),
    ],
)
def test_m11_a_file_that_does_not_fit_sdxl_is_refused(
    sdxl: Bundle, tmp_path: Path, tensors: dict[str, Any], message: str
) -> None:
    with pytest.raises(ModelError, match=message):
        read_embeddings(sdxl, [save(tmp_path / "zqx.safetensors", **tensors)])


@pytest.mark.parametrize(
    "word", ["", " ", "a cat", "a\tb", "\u202ecat", "x" * 65, "\ud800", "house</w>", "h", "<|endoftext|>"]
)
def test_m11_words_that_are_hostile_or_known_are_refused(sd: Bundle, tmp_path: Path, word: str) -> None:
    for wanted in (
        {word: save(tmp_path / "x.safetensors", emb_params=vectors(4))},
        [save(tmp_path / "y.safetensors", **{word: vectors(4)})],
    ):
        with pytest.raises(
            RequestError, match=r"embedding: the word .* is (known already|'.*', not 1 to 64)"
        ) as caught:
            read_embeddings(sd, wanted)
        assert caught.value.hint == "give it another one: FILE:WORD"


def test_m11_words_that_meet_are_refused(sd: Bundle, tmp_path: Path) -> None:
    one, two = (save(tmp_path / f"{n}.safetensors", emb_params=vectors(n, 4)) for n in (1, 2))
    for words in (("<x>", "<x>"), ("<x>", "<x>_1"), ("<x>_1", "<x>")):
        for files in ((one, one), (two, one), (one, two)):
            with pytest.raises(RequestError, match=r"'<x>(_1)?' is known already"):
                read_embeddings(sd, [f"{file}:{word}" for file, word in zip(files, words, strict=True)])


def test_m1_pickles_are_refused_by_what_they_are(sd: Bundle, tmp_path: Path) -> None:
    (tmp_path / "x.safetensors").write_bytes(pickle.dumps({"string_to_param": 1}, 2))
    with pytest.raises(ModelError, match="is a pickle"):
        read_embeddings(sd, [tmp_path / "x.safetensors"])


def test_files_that_are_not_there_or_too_many_or_too_large_are_refused(sd: Bundle, tmp_path: Path) -> None:
    with pytest.raises(RequestError, match=r"embedding: .*none.safetensors cannot be read"):
        read_embeddings(sd, [tmp_path / "none.safetensors"])
    with pytest.raises(RequestError, match="is not a file"):
        read_embeddings(sd, tmp_path)
    with pytest.raises(RequestError, match=f"embeddings: 101 files are more than {MOST_FILES}"):
        read_embeddings(sd, [tmp_path / "x"] * 101)
    with (tmp_path / "big.safetensors").open("wb") as file:
        file.truncate((16 << 20) + 1)
    with pytest.raises(RequestError, match="of at most 16 MiB"):
        read_embeddings(sd, [tmp_path / "big.safetensors"])


def test_a_name_with_a_colon_is_a_file_if_there_is_one(sd: Bundle, tmp_path: Path) -> None:
    path = save(tmp_path / "a:b", **{"<x>": vectors(4)})
    assert read_embeddings(sd, [str(path)]).words[0].word == "<x>"
    assert read_embeddings(sd, [f"{path}:<y>"]).words[0].word == "<y>"


def test_a_folder_that_says_nothing_of_its_vocabulary_is_refused(sd: Bundle, tmp_path: Path) -> None:
    (tmp_path / "text_encoder" / "config.json").write_text('{"hidden_size": 4, "vocab_size": "806"}')
    with pytest.raises(ModelError, match="vocab_size is '806', not a whole number"):
        read_embeddings(sd, [save(tmp_path / "x.safetensors", **{"<x>": vectors(4)})])


# Both runtimes, on a graph that looks ids up.


def write_lookup(folder: Path, table: np.ndarray[Any, Any], *, shift: int = 0, outside: bool = False) -> Path:
    """ids -> rows of the table, in float32; as ONNX, which OpenVINO reads too."""
    onnx = pytest.importorskip("onnx")
    helper, proto = onnx.helper, onnx.TensorProto
    nodes = [helper.make_node("Gather", ["wide", "ids"], ["found"]), helper.make_node("Add", ["found", "by"], ["y"])]
    model = helper.make_model(
        helper.make_graph(
            [helper.make_node("Cast", ["table"], ["wide"], to=proto.FLOAT), *nodes],
            "lookup",
            [helper.make_tensor_value_info("ids", proto.INT64, ["n", 3])],
            [helper.make_tensor_value_info("y", proto.FLOAT, ["n", 3, table.shape[1]])],
            [
                onnx.numpy_helper.from_array(table, "table"),
                onnx.numpy_helper.from_array(np.float32(shift), "by"),
            ],
        ),
        opset_imports=[helper.make_opsetid("", 17)],
        ir_version=10,
    )
    folder.mkdir()
    onnx.save(
        model, folder / "model.onnx", save_as_external_data=outside, location="model.onnx_data", size_threshold=16
    )
    return folder


TABLE = vectors(5, 4)
IDS = np.array([[0, 5, 6]])


def looked_up(folder: Path, runtime: str, rows: Rows | None, key: str | None = None) -> tuple[Any, str]:
    model = create(runtime).compile(folder, {"ids": (1, 3)}, precision="f32", cache_key=key, rows=rows)
    return model({"ids": IDS})["y"][0], model.cache


@pytest.mark.parametrize("runtime", BACKENDS)
@pytest.mark.parametrize("dtype", ["float32", "float16"])
@pytest.mark.parametrize("outside", [False, True])
def test_rows_are_looked_up_in_the_type_of_the_table(tmp_path: Path, runtime: str, dtype: str, outside: bool) -> None:
    pytest.importorskip("onnxruntime")
    folder = write_lookup(tmp_path / "text_encoder", TABLE.astype(dtype), outside=outside)
    assert (folder / "model.onnx_data").is_file() == outside
    rows = Rows(vectors(2, 4) * 3, behind=5)
    expected = np.concatenate([TABLE, rows.values]).astype(dtype).astype(np.float32)[IDS[0]]
    np.testing.assert_array_equal(looked_up(folder, runtime, rows)[0], expected)


@pytest.mark.parametrize("runtime", BACKENDS)
def test_a_table_that_is_not_there_or_not_of_floats_is_a_model_error(tmp_path: Path, runtime: str) -> None:
    pytest.importorskip("onnxruntime")
    folder = write_lookup(tmp_path / "a", TABLE)
    for behind, width in ((6, 4), (5, 3)):
        with pytest.raises(ModelError, match=f"0 tables of {behind} x {width}"):
            looked_up(folder, runtime, Rows(vectors(2, width), behind))
    half = write_lookup(tmp_path / "b", TABLE.astype(np.float16))
    with pytest.raises(ModelError, match="too large for float16") as caught:
        looked_up(half, runtime, Rows(vectors(1, 4) + 1e5, 5))
    assert caught.value.hint == "take the variant fp32"
    (tmp_path / "c").mkdir()
    (tmp_path / "c" / "model.onnx").write_bytes(b"not a graph")
    with pytest.raises(ModelError):
        looked_up(tmp_path / "c", runtime, Rows(vectors(1, 4), 5))


def test_onnxruntime_adds_no_floats_to_a_table_of_whole_numbers(tmp_path: Path) -> None:
    pytest.importorskip("onnxruntime")
    folder = write_lookup(tmp_path / "a", np.arange(20, dtype=np.int8).reshape(5, 4))
    with pytest.raises(ModelError, match="stored as int8"):
        looked_up(folder, "onnxruntime", Rows(vectors(1, 4), 5))


def test_openvino_adds_floats_behind_what_eight_bits_become(tmp_path: Path) -> None:
    folder = write_lookup(tmp_path / "a", np.arange(20, dtype=np.int8).reshape(5, 4))
    rows = Rows(vectors(2, 4), 5)
    np.testing.assert_array_equal(looked_up(folder, "openvino", rows)[0], [np.arange(4), *rows.values])


def test_e7_what_is_compiled_with_other_rows_is_another_thing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("onnx")
    monkeypatch.setenv("OVENBIRD_CACHE", str(tmp_path / "cache"))
    folder = write_lookup(tmp_path / "text_encoder", TABLE)
    one, two = Rows(vectors(2, 4), 5), Rows(vectors(2, 4) + 1, 5)
    assert [looked_up(folder, "openvino", rows, "key")[1] for rows in (one, two, one)] == ["miss", "miss", "hit"]
    np.testing.assert_array_equal(looked_up(folder, "openvino", two, "key")[0][1:], two.values)
    assert create("openvino").compile(folder, {"ids": (1, 3)}, precision="f32", cache_key="key").cache == "miss"


def test_onnxruntime_says_what_it_lacks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("onnxruntime")
    import sys

    from ovenbird import MissingExtraError

    folder = write_lookup(tmp_path / "a", TABLE)
    monkeypatch.setitem(sys.modules, "onnx", None)
    with pytest.raises(MissingExtraError, match="onnx is not installed"):
        looked_up(folder, "onnxruntime", Rows(vectors(1, 4), 5))


# The whole way.


def test_a_learned_word_is_drawn_and_the_picture_names_its_file(tmp_path: Path) -> None:
    file, picture = save(tmp_path / "snowy.safetensors", emb_params=vectors(2, 128)), tmp_path / "a.png"
    words = ["--prompt", "a <snowy> house", "--seed", "1", "--num-inference-steps", "2"]
    given = [*words, "--embedding", f"{file}:<snowy>", "--output", str(picture)]
    result = CliRunner().invoke(main, ["generate", *given])
    assert result.exit_code == 0 and "embedding: <snowy> from snowy.safetensors" in result.stderr
    with Image.open(picture) as image:
        facts = json.loads(image.text["ovenbird"])  # type: ignore[attr-defined]
        pixels = image.tobytes()
    digest = hashlib.sha256(file.read_bytes()).hexdigest()
    assert facts["embeddings"] == [{"word": "<snowy>", "file": "snowy.safetensors", "sha256": digest}]
    wish = Request(prompt="a <snowy> house", seed=1, num_inference_steps=2)
    known, unknown = (
        Pipeline.open("nestling", embeddings=wanted).generate(wish).images[0] for wanted in ({"<snowy>": file}, ())
    )
    assert known.tobytes() == pixels != unknown.tobytes()


def test_a_bad_file_is_told_before_the_model_is_looked_at(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Bundle, "verify_once", lambda _: pytest.fail("looked at"))
    file = save(tmp_path / "x.safetensors", **{"<x>": vectors(768)})
    words = ["--prompt", "a <x>", "--embedding", str(file), "--output", str(tmp_path / "a.png")]
    result = CliRunner().invoke(main, ["generate", *words])
    assert result.exit_code == 3
    assert "x.safetensors has vectors of 768 numbers; those of nestling's text_encoder have 128" in result.stderr
