"""What a picture says of itself is read back, makes it again bit for bit, and is not trusted."""

from __future__ import annotations

import json
import random
import shutil
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import click
import numpy as np
import pytest
from click.testing import CliRunner, Result
from pace import within
from PIL import Image
from PIL.PngImagePlugin import PngInfo
from test_embeddings import save as save_tensors
from test_metadata import FACTS, PICTURE

from ovenbird import Pipeline, Request, RequestError, cli, infotext, recall
from ovenbird.commands import generate, recalling
from ovenbird.metadata import OURS, save_picture
from ovenbird.recall import Recalled
from ovenbird.result import Developing, Picture

LEAST = ["--num-inference-steps", "2", "--seed", "7", "--quiet"]


@pytest.fixture
def world(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, nestling: Path) -> Path:
    """A folder with files that options can name."""
    monkeypatch.chdir(tmp_path)
    rng = np.random.default_rng(3)
    Image.fromarray(rng.integers(0, 256, (128, 128, 3), np.uint8)).save("init.png")
    mask = Image.new("L", (128, 128))
    mask.paste(255, (0, 0, 128, 80))
    mask.save("mask.png")
    save_tensors(tmp_path / "snowy.safetensors", snowy=rng.standard_normal((2, 128)))
    words = tmp_path / "words"
    words.mkdir()
    for name in ("vocab.json", "merges.txt", "tokenizer_config.json"):
        shutil.copy(nestling / "fp16" / "tokenizer" / name, words)
    (words / "merges.txt").write_text("#version: 0.2\n")  # every letter is a token
    return tmp_path


def typed(*words: str) -> Result:
    found = CliRunner().invoke(cli.main, ["generate", *words])
    assert found.exception is None or isinstance(found.exception, SystemExit), found.exception
    return found


def again(*words: str, of: str = "a.png", into: str = "b.png") -> Result:
    return typed("--params-from", of, "--output", into, "--quiet", *words)


def told(path: str | Path) -> dict[str, Any]:
    with Image.open(path) as image:
        image.load()
        found: dict[str, Any] = json.loads(image.text["ovenbird"])  # type: ignore[attr-defined]
    return found


def pixels(path: str | Path) -> bytes:
    with Image.open(path) as image:
        return image.tobytes()


# Every option

NEGATIVE = ["--negative-original-size", "96", "64", "--negative-target-size", "64", "96"]
NEGATIVE += ["--negative-crops-coords-top-left", "8", "16"]
CHANGING: Mapping[str, Sequence[str]] = {
    "prompt": ["--prompt", "a blue boat"],
    "negative_prompt": ["--negative-prompt", "snow"],
    "prompt_syntax": ["--prompt-syntax", "webui"],
    "clip_skip": ["--clip-skip", "1"],
    "strict": ["--strict"],
    "init_image": ["--init-image", "init.png"],
    "strength": ["--init-image", "init.png", "--strength", "0.9"],
    "mask": ["--init-image", "init.png", "--mask", "mask.png"],
    "height": ["--height", "96"],
    "width": ["--width", "96"],
    "num_inference_steps": ["--num-inference-steps", "3"],
    "guidance_scale": ["--guidance-scale", "4"],
    "guidance_interval": ["--guidance-interval", "0.1", "0.8"],
    "seed": ["--seed", "8"],
    "scheduler": ["--scheduler", "euler_a"],
    "eta": ["--scheduler", "ddim", "--eta", "0.5"],
    "beta_start": ["--beta-start", "0.001"],
    "beta_end": ["--beta-end", "0.02"],
    "beta_schedule": ["--beta-schedule", "linear"],
    "variation_seed": ["--variation-strength", "0.3", "--variation-seed", "9"],
    "variation_strength": ["--variation-strength", "0.4", "--variation-seed", "9"],
    "to_prompt": ["--to-prompt", "a green tent"],
    "blend": ["--to-prompt", "a green tent", "--blend", "0.3"],
    "hires_scale": ["--hires-scale", "1.5"],
    "hires_upscaler": ["--hires-scale", "1.5", "--hires-upscaler", "lanczos"],
    "hires_strength": ["--hires-scale", "1.5", "--hires-strength", "0.5"],
    "hires_steps": ["--hires-scale", "1.5", "--hires-steps", "4"],
    "tile_size": ["--tile-size", "64"],
    **{name: [f"--{name.replace('_', '-')}", "96", "64"] for name in ("original_size", "target_size")},
    "crops_coords_top_left": ["--crops-coords-top-left", "8", "16"],
    **dict.fromkeys(("negative_original_size", "negative_target_size", "negative_crops_coords_top_left"), NEGATIVE),
    "precision": ["--precision", "fp16"],
    "embedding": ["--embedding", "snowy.safetensors"],
    "tokenizer": ["--tokenizer", "words"],
    "backend": ["--backend", "onnxruntime"],
    "device": ["--device", "AUTO"],
    "threads": ["--threads", "1"],
    "preset": ["--preset", "fast"],
    "pool_attention": ["--pool-attention", "all"],
    "reuse_every": ["--reuse-every", "2"],
    "reuse_depth": ["--reuse-every", "2", "--reuse-depth", "1"],
    "exact": ["--exact-edit", "gates"],
    "batch_size": ["--batch-size", "3"],
    "vae_tile": ["--vae-tile", "64"],
}
"""Option -> words that give it a value of its own, with what that value needs."""
UNCHANGED = {
    "allow_foreign_ir": "is trust, which a picture cannot give",
    "params_from": "is what this is about",
    "num_images": "each picture is recorded by itself",
    "output": "says where",
    "overwrite": "says where",
    "model": "is compared, by hash and name",
    "offline": "says where files come from",
    "decoder": "nestling has but one: test_what_nestling_lacks_is_taken_over_too",
    "no_safety_checker": "nestling has none: test_what_nestling_lacks_is_taken_over_too",
    "max_memory": "what it leads to is recorded: tiles, pictures side by side",
    "preview_every": "shows what is drawn anyway",
    "report": "is about time",
    "as_json": "is about what is printed",
    "quiet": "is about what is printed",
}
NEEDED = {
    "init_image": ["--init-image", "init.png"],
    "mask": ["--mask", "mask.png"],
    "embedding": ["--embedding", "snowy.safetensors"],
    "tokenizer": ["--tokenizer", "words"],
}


@pytest.fixture
def undrawn(monkeypatch: pytest.MonkeyPatch) -> None:
    """Pictures are saved with all their facts, gray: nothing is compiled."""

    def draw(pipeline: Any, requests: Any, paths: Any, typed: Any) -> None:
        tile = pipeline.setting.vae_tile
        developing = Developing(pipeline.autoencoder.decoder, tile, pipeline.precision, False, "none")
        [single] = pipeline._settled(requests)[0].singles()
        picture = Picture(0, single, PICTURE, None, developing)
        pipeline.save(picture, paths[0])

    monkeypatch.setattr(generate, "draw", draw)


def test_every_option_is_recorded_or_makes_no_difference() -> None:
    names = {parameter.name for parameter in cli.generate.params if parameter.expose_value}
    assert names == {*CHANGING, *UNCHANGED}


@pytest.mark.filterwarnings("ignore:preset fast")
@pytest.mark.usefixtures("undrawn")
@pytest.mark.parametrize("name", CHANGING)
def test_every_option_that_changes_pixels_is_recorded_and_taken_over(name: str, world: Path) -> None:
    if name == "backend":
        pytest.importorskip("onnxruntime")
    prompt = [] if name == "prompt" else ["--prompt", "a red house"]
    first = typed(*LEAST, *prompt, *CHANGING[name], "--output", "a.png")
    assert first.exit_code == 0, first.output
    files = [word for option, words in NEEDED.items() if words[0] in CHANGING[name] for word in words]
    second = again(*files)
    assert second.exit_code == 0, second.output
    assert told("b.png") == told("a.png")
    if name != "precision":  # nestling has but one
        typed(*LEAST, "--prompt", "a red house", "--output", "plain.png")
        assert told("a.png") != told("plain.png")


def test_what_nestling_lacks_is_taken_over_too() -> None:
    found = recalling._options(Recalled(Path("a.png"), {"prompt": "", "decoder": "tiny", "safety_checker": "off"}, ""))
    assert found["decoder"] == "tiny" and found["no_safety_checker"] is True
    found = recalling._options(Recalled(Path("a.png"), {"prompt": "", "weights": "unknown", "exact": []}, ""))
    assert "precision" not in found and found["exact"] == ("none",)


# Pixels

DRAWN = {
    "plain": "--prompt snowy --embedding snowy.safetensors --scheduler ddim --eta 0.6 --beta-end 0.02 --clip-skip 1",
    "a variation": "--tokenizer words --variation-strength 0.4 --to-prompt tent --prompt-syntax webui",
    "a part of a picture": "--init-image init.png --mask mask.png --strength 1 --scheduler euler_a",
    "enlarged": "--hires-scale 1 --hires-upscaler lanczos --height 128",
    "quick": "--preset fast --exact-edit gates --guidance-scale 3",
}


@pytest.mark.filterwarnings("ignore:preset fast")
@pytest.mark.parametrize("name", DRAWN)
def test_a_picture_is_made_again_bit_for_bit(name: str, world: Path) -> None:
    words = ["--num-inference-steps", "2", "--quiet", *DRAWN[name].split(), "--output", "a.png"]
    first = typed("--prompt", "a red house", *words) if "--prompt" not in words else typed(*words)
    assert first.exit_code == 0, first.output
    made = again(*(word for needed in NEEDED.values() if needed[0] in words for word in needed))
    assert made.exit_code == 0 and made.stderr == "", made.output
    assert pixels("b.png") == pixels("a.png") and told("b.png") == told("a.png")


def test_pictures_of_several_kinds_of_files_make_the_same_one(world: Path) -> None:
    """One of several that were drawn side by side, too."""
    typed(*LEAST, "--prompt", "a red house", "--num-images", "2", "--batch-size", "2", "--output", "a.png")
    for of, into in (("a-1.png", "b.webp"), ("b.webp", "c.jpg"), ("c.jpg", "d.png")):
        assert again(of=of, into=into).exit_code == 0
    assert told("d.png") == told("a-1.png") and pixels("d.png") == pixels("a-1.png")


@pytest.mark.filterwarnings("always")
@pytest.mark.usefixtures("undrawn")
def test_what_is_typed_goes_before(world: Path) -> None:
    typed(*LEAST, "--prompt", "a red house", "--scheduler", "euler", "--preset", "fast", "--output", "a.png")
    # Values that are defaults, but typed.
    again("--prompt", "a boat", "--num-inference-steps", "32", "--guidance-scale", "7.5", "--preset", "exact")
    found, before = told("b.png"), told("a.png")
    assert (found["prompt"], found["num_inference_steps"], found["guidance_scale"]) == ("a boat", 32, 7.5)
    assert (found["reuse_every"], found["pool_attention"], found["shortcuts"]) == (1, "off", "none")
    assert (found["seed"], found["scheduler"]) == (before["seed"], "euler")


@pytest.mark.filterwarnings("always")
@pytest.mark.usefixtures("undrawn")
def test_files_must_be_given_again_and_others_are_told_apart(world: Path) -> None:
    words = [
        "--init-image",
        "init.png",
        "--mask",
        "mask.png",
        "--embedding",
        "snowy.safetensors",
        "--tokenizer",
        "words",
    ]
    typed(*LEAST, "--prompt", "a red house", *words, "--output", "a.png")
    for left_out in range(0, len(words), 2):
        refused = again(*words[:left_out], *words[left_out + 2 :])
        assert refused.exit_code == 2 and f"hint: {words[left_out]} FILE" in refused.stderr, refused.stderr
    Image.new("RGB", (128, 128)).save("init.png")
    Image.new("L", (128, 128), 255).save("mask.png")
    save_tensors(world / "snowy.safetensors", snowy=np.ones((2, 128)))
    (world / "words" / "merges.txt").write_text("#version: 0.2\na b</w>\n")
    made = again(*words)
    assert made.exit_code == 0, made.output
    for what in ("another --init-image", "another --mask", "other learned words", "another --tokenizer"):
        assert f"warning: a.png was made by ovenbird 0.1.0 with {what}" in made.stderr


@pytest.mark.filterwarnings("always")
@pytest.mark.usefixtures("undrawn")
def test_another_model_is_named_with_the_one_that_was_used(world: Path) -> None:
    facts = FACTS | {"prompt": "a tree", "width": 128, "height": 128, "model": "other", "model_key": "ab" * 32}
    save_picture(PICTURE, Path("a.png"), facts | {"backend": "openvino 2020.1", "threads": 9999})
    refused = again()
    assert refused.exit_code == 2 and "a.png was made with 'other', which is not among" in refused.stderr
    made = again("--model", "nestling")
    assert "with other (abababababab), and this is nestling (" in made.stderr
    assert "with backend openvino 2020.1, and this is openvino" in made.stderr and "threads 9999" in made.stderr


@pytest.mark.filterwarnings("always")
def test_a_model_is_found_by_its_hash_and_a_name_is_never_a_path(world: Path, nestling: Path) -> None:
    typed(*LEAST, "--prompt", "a red house", "--output", "a.png")
    facts = told("a.png")
    save_picture(PICTURE, Path("c.png"), facts | {"model": "renamed"})
    assert again(of="c.png").exit_code == 0 and pixels("b.png") == pixels("a.png")
    shutil.copytree(nestling / "fp16" / "scheduler", "evil")
    for name in ("evil", "./evil", str(world / "evil"), "../" + world.name, "nestling/fp16", ""):
        save_picture(PICTURE, Path("c.png"), facts | {"model": name, "model_key": None}, overwrite=True)
        refused = again(of="c.png", into="d.png")
        assert refused.exit_code == 2 and "model: c.png" in refused.stderr, name


def test_i8_nothing_of_an_input_pictures_metadata_is_passed_on(world: Path) -> None:
    exif = Image.Exif()
    exif[0x010F], exif.get_ifd(0x8825)[1] = "A camera", "N"
    with Image.open("init.png") as image:
        image.save("init.jpg", exif=exif, comment=b"secret", icc_profile=b"")
    for end in ("png", "jpg"):
        words = [*LEAST, "--prompt", "a", "--init-image", "init.jpg", "--strength", "0.5", "--output", f"a.{end}"]
        assert typed(*words).exit_code == 0
        with Image.open(f"a.{end}") as made:
            made.load()
            assert set(made.getexif()) <= {0x010E, 0x8769} and not made.getexif().get_ifd(0x8825)
            assert b"secret" not in Path(f"a.{end}").read_bytes() and b"camera" not in Path(f"a.{end}").read_bytes()


# The web UI

INFOTEXT = (
    "a (red:1.2) house,\nin the snow\nNegative prompt: people, [dogs]\nSteps: 20, Sampler: DPM++ 2M, "
    "Schedule type: Karras, CFG scale: 6.5, Seed: 96, Size: 64x96, Model hash: 45dee52b, Model: v1-5-pruned, "
    'Clip skip: 2, Variation seed: 5, Variation seed strength: 0.25, Lora hashes: "a: b, c: d", RNG: CPU, Version: v1.9'
)


def web_ui(path: Path, text: str) -> Path:
    """A picture as that program writes it."""
    how: dict[str, Any] = {}
    if path.suffix == ".png":
        how["pnginfo"] = PngInfo()
        how["pnginfo"].add_text("parameters", text)
    else:
        # As piexif has it, whose numbers are the other way round than Pillow's.
        comment = b"UNICODE\0" + text.encode("utf-16-be")
        ifd = b"\0\x01\x92\x86\0\x07" + len(comment).to_bytes(4) + (44).to_bytes(4) + bytes(4)
        how["exif"] = b"Exif\0\0MM\0*\0\0\0\x08\0\x01\x87\x69\0\x04\0\0\0\x01\0\0\0\x1a" + bytes(4) + ifd + comment
    PICTURE.save(path, **how)
    return path


@pytest.mark.parametrize("end", ["png", "jpg", "webp"])
def test_the_web_uis_settings_in_ours(end: str, tmp_path: Path) -> None:
    found = recall.read(web_ui(tmp_path / f"a.{end}", INFOTEXT))
    assert found.by == "stable-diffusion-webui"
    assert found.settings == {
        "prompt": "a (red:1.2) house,\nin the snow",
        "negative_prompt": "people, [dogs]",
        "prompt_syntax": "webui",
        "num_inference_steps": 20,
        "scheduler": "DPM++ 2M Karras",
        "guidance_scale": 6.5,
        "seed": 96,
        "width": 64,
        "height": 96,
        "clip_skip": 1,
        "variation_seed": 5,
        "variation_strength": 0.25,
        "model": "v1-5-pruned",
    }


@pytest.mark.parametrize(
    ("sampler", "expected"),
    [
        ("Sampler: Euler a, Schedule type: Automatic", "Euler a"),
        ("Sampler: DPM++ 2M, Schedule type: Automatic", "DPM++ 2M Karras"),
        ("Sampler: DPM++ 2M SDE, Schedule type: Automatic", "DPM++ 2M SDE Exponential"),
        ("Sampler: DPM++ 2M Karras", "DPM++ 2M Karras"),
        ("Sampler: Euler, Schedule type: Uniform", "Euler"),
        ("Sampler: Euler, Schedule type: SGM Uniform", "Euler SGM Uniform"),
    ],
)
def test_samplers_and_their_schedule_types(sampler: str, expected: str) -> None:
    found = infotext.parse(f"a\nSteps: 2, {sampler}, CFG scale: 7, Seed: 1, Size: 64x64")
    assert found and found["scheduler"] == expected


def test_what_is_enlarged_or_made_from_a_picture_counts_steps_our_way() -> None:
    base = "a\nSteps: 20, Sampler: Euler, CFG scale: 7, Seed: 1, Size: 64x64, Denoising strength: 0.55"
    hires = infotext.parse(f"{base}, Hires upscale: 2, Hires steps: 11, Hires upscaler: Latent")
    assert hires and (hires["hires_steps"], hires["hires_strength"], hires["hires_scale"]) == (20, 0.55, 2.0)
    assert int(hires["hires_steps"] * 0.55) == 11 and "strength" not in hires
    from_picture = infotext.parse(base)
    assert from_picture and from_picture["strength"] == 0.55 and from_picture["image"] == ""
    with pytest.warns(UserWarning, match="R-ESRGAN"):
        infotext.parse(f"{base}, Hires upscale: 2, Hires upscaler: R-ESRGAN 4x+")
    with pytest.warns(UserWarning, match="no counterpart here: ENSD, Face restoration"):
        infotext.parse(f"{base}, ENSD: 31337, Face restoration: CodeFormer")


def test_our_own_words_for_the_web_ui_are_read_as_they_were_meant() -> None:
    from ovenbird.metadata import parameters

    facts = FACTS | {"prompt": "a tree\n(big)", "variation_seed": 3, "variation_strength": 0.5}
    facts |= {"hires_scale": 2.0, "hires_upscaler": "lanczos", "hires_strength": 0.7, "hires_steps": 30}
    found = infotext.parse(parameters(facts))
    assert found and found.pop("prompt") == "a tree\n\\(big\\)" and found.pop("prompt_syntax") == "webui"
    assert found.pop("scheduler") == facts["sampler"] and found.pop("clip_skip", None) is None
    assert found == {name: facts[name] for name in found} and {"hires_steps", "variation_seed", "model"} <= set(found)


@pytest.mark.filterwarnings("always")
@pytest.mark.usefixtures("undrawn")
def test_a_picture_of_the_web_ui_gives_its_settings_and_warns(world: Path) -> None:
    web_ui(world / "a.png", INFOTEXT)
    assert "with 'v1-5-pruned', which is not among the models here" in again().stderr
    made = again("--model", "nestling")
    assert made.exit_code == 0 and "v1-5-pruned, and this is nestling" in made.stderr, made.output
    found = told("b.png")
    assert (found["sampler"], found["prompt_syntax"], found["clip_skip"]) == ("DPM++ 2M Karras", "webui", 1)
    web_ui(world / "c.png", INFOTEXT.replace("DPM++ 2M,", "DPM++ SDE,"))
    refused = again("--model", "nestling", of="c.png", into="d.png")
    assert refused.exit_code == 2 and "scheduler: 'DPM++ SDE Karras' is not one of" in refused.stderr
    assert again("--model", "nestling", "--scheduler", "euler", of="c.png", into="d.png").exit_code == 0
    web_ui(world / "e.png", f"{INFOTEXT}, Denoising strength: 0.5")
    assert "made with another picture" in again("--model", "nestling", of="e.png", into="f.png").stderr


# No trust

BAD = {
    "not JSON": ("{", "not JSON"),
    "deep": ("[" * 100_000, "not JSON"),
    "a list": ("[]", "list, not an object"),
    "no prompt": ("{}", "has no prompt"),
    "an unknown field": ('{"prompt": "a", "run": "rm"}', "'run' that is not known"),
    "a text for a number": ('{"prompt": "a", "seed": "7"}', "seed is '7', which is not a whole number"),
    "a fraction for a whole number": ('{"prompt": "a", "seed": 7.5}', "not a whole number"),
    "true for a number": ('{"prompt": "a", "guidance_scale": true}', "not a number"),
    "three for a pair": ('{"prompt": "a", "target_size": [1, 2, 3]}', "not a pair of whole numbers"),
    "texts for tables": ('{"prompt": "a", "embeddings": ["x"]}', "not a list of objects"),
    "a number for an object": ('{"prompt": "a", "scheduler_config": 1}', "not an object"),
    "a number for a text": ('{"prompt": "a", "model": 1}', "not a text"),
    "a huge number": ('{"prompt": "a", "seed": ' + "9" * 5000 + "}", "not JSON"),
    "too long": ('{"prompt": "' + "a" * (2 << 20) + '"}', "characters, more than"),
}


@pytest.mark.parametrize("name", BAD)
@pytest.mark.parametrize("end", ["png", "webp"])
def test_settings_that_cannot_be_are_refused(name: str, end: str, tmp_path: Path) -> None:
    path, (text, message) = tmp_path / f"a.{end}", BAD[name]
    if end == "png":
        info = PngInfo()
        info.add_itxt("ovenbird", text)
        PICTURE.save(path, pnginfo=info)
    else:
        exif = Image.Exif()
        exif[0x010E] = OURS + text
        PICTURE.save(path, exif=exif)
    with pytest.raises(RequestError, match=message) as refused:
        recall.read(path)
    assert refused.value.hint and len(str(refused.value)) < 300


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('{"prompt": "a", "seed": -1}', "seed: -1"),
        ('{"prompt": "a", "guidance_scale": NaN}', "guidance_scale: nan"),
        ('{"prompt": "a", "width": 100000}', "width: 100000"),
        ('{"prompt": "a", "decoder": "../../x"}', "decoder"),
        ('{"prompt": "a", "backend": "os.system"}', "backend"),
        ('{"prompt": "a", "pool_attention": "x"}', "pool_attention"),
        ('{"prompt": "a", "batch_size": 0}', "batch_size"),
        ('{"prompt": "a", "scheduler_config": {"beta_schedule": [1]}}', "beta_schedule"),
    ],
)
def test_settings_out_of_range_are_refused_as_if_they_were_typed(text: str, message: str, world: Path) -> None:
    info = PngInfo()
    info.add_itxt("ovenbird", text)
    PICTURE.save("a.png", pnginfo=info)
    refused = again("--model", "nestling")
    assert refused.exit_code in (2, 3) and message in refused.stderr and "Traceback" not in refused.output
    assert not Path("b.png").exists()


def test_pictures_that_say_nothing_are_refused(tmp_path: Path) -> None:
    PICTURE.save(tmp_path / "a.png")
    exif = Image.Exif()
    exif[0x010E] = "A holiday"
    PICTURE.save(tmp_path / "b.jpg", exif=exif)
    web_ui(tmp_path / "c.png", "only words")
    PICTURE.save(tmp_path / "d.webp", exif=b"Exif\0\0MM\0*\xff\xff\xff\xff")
    (tmp_path / "e.png").write_text("words")
    for name in ("a.png", "b.jpg", "c.png", "d.webp", "e.png"):
        with pytest.raises(RequestError, match=name):
            recall.read(tmp_path / name)


def test_the_web_uis_text_is_read_in_linear_time() -> None:
    hostile = ["a" * 60_000, "a:" * 30_000, 'x: "' + '\\"' * 29_000, "a b-" * 15_000, " " * 60_000 + "x", "1x" * 30_000]
    with within(1):
        for text in hostile:
            infotext.parse(f"words\n{text}")


def test_changed_texts_are_parsed_or_refused_and_nothing_else() -> None:
    rng = random.Random(0)
    warnings.simplefilter("ignore")
    for _ in range(2000):
        text = list(INFOTEXT)
        for _ in range(rng.randrange(1, 6)):
            text[rng.randrange(len(text))] = rng.choice('\n,:"\\x0123456789 -.eE\0é')
        found = infotext.parse("".join(text))
        if found is not None:
            try:
                recall._checked("a", Path("a"), found)
            except RequestError as refused:
                assert refused.hint


def test_explicit_options_are_known_by_their_source() -> None:
    """A command that was called without a context would take every default for typed."""
    assert click.get_current_context(silent=True) is None
    with pytest.raises(RuntimeError):
        recalling.recalled({}, Recalled(Path("a.png"), {"prompt": ""}, ""))


def test_a_size_to_enlarge_to_is_a_factor() -> None:
    base = "a\nSteps: 20, Sampler: Euler, CFG scale: 7, Seed: 1, Size: 96x64, Denoising strength: 0.5"
    for resize in ("192x128", "0x128", "192x0"):
        found = infotext.parse(f"{base}, Hires resize: {resize}, Hires upscaler: Latent")
        assert found and (found["hires_scale"], found["hires_strength"]) == (2.0, 0.5) and "image" not in found
    with pytest.warns(UserWarning, match="to another shape"):
        found = infotext.parse(f"{base}, Hires resize: 192x192, Hires upscaler: Latent")
    assert found and not {"image", "strength", "hires_scale"} & {*found}


def test_eta_of_samplers_that_have_none_here_is_told() -> None:
    base = "a\nSteps: 20, CFG scale: 7, Seed: 1, Size: 64x64"
    with pytest.warns(UserWarning, match="no counterpart here: Eta"):
        infotext.parse(f"{base}, Sampler: Euler a, Eta: 0.5")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert infotext.parse(f"{base}, Sampler: Euler a, Eta: 1.0")
        found = infotext.parse(f"{base}, Sampler: DDIM, Eta: 0.5")
    assert found and found["eta"] == 0.5


def test_the_first_frame_of_a_walk_between_seeds_is_made_again(world: Path) -> None:
    words = ["--prompt", "a red house", "--to-seed", "8", "--frames", "2", *LEAST]
    assert CliRunner().invoke(cli.main, ["frames", *words]).exit_code == 0
    made = again(of="walk/00000.png")
    assert made.exit_code == 0
    with Image.open("b.png") as ours, Image.open("walk/00000.png") as theirs:
        assert ours.tobytes() == theirs.tobytes()


def test_all_that_the_scheduler_was_told_is_told_again(world: Path) -> None:
    config = {"timestep_spacing": "trailing", "use_karras_sigmas": False, "beta_end": 0.013}
    pipeline = Pipeline.open("nestling", scheduler_config=config)
    result = pipeline.generate(Request(prompt="a red house", seed=7, num_inference_steps=2))
    pipeline.save(result.pictures[0], "a.png")
    assert again().exit_code == 0 and Path("a.png").read_bytes() == Path("b.png").read_bytes()


def test_the_web_uis_clip_skip_is_none_for_sdxl() -> None:
    wish, picture = Request(prompt="a", clip_skip=1), Recalled(Path("a.png"), {}, recall.WEB_UI)
    model = SimpleNamespace(bundle=SimpleNamespace(family="sdxl"))
    with pytest.warns(UserWarning, match="clip_skip: the web UI has none"):
        assert recalling.as_read(model, wish, picture).clip_skip == 0  # type: ignore[arg-type]
    model.bundle.family = "sd"
    assert recalling.as_read(model, wish, picture) is wish  # type: ignore[arg-type]
    model.bundle.family = "sdxl"
    assert recalling.as_read(model, wish, Recalled(Path("a.png"), {}, "ovenbird 1")) is wish  # type: ignore[arg-type]
