"""Pictures that are given: what is taken, what becomes of it, what is refused."""

from __future__ import annotations

import io
import json
import struct
import tracemalloc
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image, ImageCms, features

from ovenbird import ModelError, Pipeline, Request, RequestError
from ovenbird.images import digest, fitted, mask, picture, read


def scene(width: int = 96, height: int = 80) -> Image.Image:
    rng = np.random.default_rng(width * height)
    return Image.fromarray(rng.integers(0, 256, (height, width, 3), np.uint8))


def dot(image: Image.Image) -> Any:
    return picture("image", image).getpixel((0, 0))


def saved(image: Image.Image, kind: str, **options: Any) -> bytes:
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP"])
def test_i1_a_cut_file_is_refused(tmp_path: Path, kind: str) -> None:
    whole, path = saved(scene(), kind), tmp_path / "cut"
    path.write_bytes(whole)
    assert read("image", path).size == (96, 80)
    for tenth in range(10):
        path.write_bytes(whole[: len(whole) * tenth // 10])
        with pytest.raises(RequestError, match=r"^init-image: .*cut is not a whole PNG, JPEG or WEBP file"):
            read("init-image", path)


@pytest.mark.parametrize("content", [b"", b"a picture", b"<html><img></html>", b"\x89PNG\r\n\x1a\n" + bytes(50)])
def test_i2_what_is_no_picture_is_refused(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "a.png"
    path.write_bytes(content)
    with pytest.raises(RequestError):
        read("image", path)


@pytest.mark.parametrize("size", [(9000, 9990), (20000, 10000), (4097, 4096)])
def test_i3_a_bomb_is_known_by_its_header(tmp_path: Path, size: tuple[int, int]) -> None:
    def chunk(name: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))

    path, header = tmp_path / "bomb.png", struct.pack(">IIBBBBB", *size, 8, 2, 0, 0, 0)
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", b""))
    with pytest.raises(RequestError, match="pixels"):
        read("image", path)


def test_i3_bombs_of_other_formats_take_no_memory(tmp_path: Path) -> None:
    jpeg, webp = (saved(Image.new("RGB", (8, 8)), kind) for kind in ("JPEG", "WEBP"))
    sides = jpeg.index(b"\xff\xc0") + 5  # behind marker, length and depth
    frame = webp.index(b"VP8 ") + 14  # behind name, size, and what begins each key frame
    bombs = {
        "jpeg": jpeg[:sides] + struct.pack(">HH", 65500, 65500) + jpeg[sides + 4 :],
        "webp": webp[:frame] + struct.pack("<HH", 16383, 16383) + webp[frame + 4 :],
    }
    for name, content in bombs.items():
        (tmp_path / name).write_bytes(content)
        tracemalloc.start()
        try:
            with pytest.raises(RequestError, match=r"pixels are more than 16 million|is not a whole"):
                read("image", tmp_path / name)
            assert tracemalloc.get_traced_memory()[1] < 1 << 20
        finally:
            tracemalloc.stop()


FOREIGN = {
    "PSD": b"8BPS\x00\x01" + bytes(6) + struct.pack(">HIIHH", 3, 8, 8, 8, 3) + bytes(300),
    "FITS": b"".join(
        line.ljust(80) for line in (b"SIMPLE  =                    T", b"BITPIX  =                    8",
                                    b"NAXIS   =                    2", b"NAXIS1  =                    8",
                                    b"NAXIS2  =                    8", b"END")
    ).ljust(2880) + bytes(2880),
    "SVG": b'<svg xmlns="http://www.w3.org/2000/svg"><image href="file:///etc/passwd"/></svg>',
    "EPS that runs": b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 8 8\n(/etc/passwd) (r) file\n",
    "AVIF": bytes.fromhex("0000001c66747970617669660000000061766966") + b"mif1miaf" + bytes(200),
    "HEIC": bytes.fromhex("0000001c667479706865696300000000") + b"mif1heic" + bytes(200),
    "JPEG 2000": bytes.fromhex("0000000c6a5020200d0a870a") + bytes(200),
    "XBM": b"#define a_width 8\n#define a_height 8\nstatic char a_bits[] = {0};",
    "WMF": bytes.fromhex("d7cdc69a") + bytes(200),
    "PCX": b"\x0a\x05\x01\x08" + bytes(200),
    "DDS": b"DDS " + struct.pack("<I", 124) + bytes(200),
    "QOI": b"qoif" + struct.pack(">II", 8, 8) + b"\x03\x00" + bytes(100),
    "ZIP": b"PK\x03\x04" + bytes(100),
}  # fmt: skip


@pytest.mark.parametrize("kind", FOREIGN)
def test_i4_what_pillow_cannot_write_is_not_parsed_either(tmp_path: Path, kind: str) -> None:
    (tmp_path / "a.png").write_bytes(FOREIGN[kind])
    with pytest.raises(RequestError, match="not a whole PNG, JPEG or WEBP file"):
        read("image", tmp_path / "a.png")


@pytest.mark.parametrize("kind", ["GIF", "TIFF", "BMP", "PPM", "EPS", "PDF", "ICO", "TGA"])
def test_i4_other_formats_are_not_parsed(tmp_path: Path, kind: str) -> None:
    path = tmp_path / "a.png"
    path.write_bytes(saved(scene(), kind))
    with pytest.raises(RequestError, match="not a whole"):
        read("image", path)


@pytest.mark.parametrize("kind", ["PNG", "WEBP"])
def test_i4_of_several_pictures_the_first_is_taken_with_a_warning(tmp_path: Path, kind: str) -> None:
    path = tmp_path / "two"
    path.write_bytes(saved(Image.new("RGB", (8, 8), "red"), kind, save_all=True, lossless=True,
                           append_images=[Image.new("RGB", (8, 8), "blue")]))  # fmt: skip
    with pytest.warns(UserWarning, match="the first is taken"):
        assert dot(read("image", path)) == (255, 0, 0)


def test_i5_sixteen_bits_are_scaled_not_clipped() -> None:
    values = np.array([[0, 1000, 63000, 65535]], np.uint16)
    deep = Image.open(io.BytesIO(saved(Image.fromarray(values), "PNG")))
    assert np.asarray(picture("image", deep))[0, :, 0].tolist() == [0, 4, 245, 255]
    with pytest.raises(RequestError, match="mode F"):
        picture("image", Image.new("F", (8, 8)))


@pytest.mark.parametrize("mode", ["RGBA", "LA", "P", "PA"])
def test_i6_what_is_transparent_is_white(mode: str) -> None:
    image = Image.new("RGBA", (4, 4), (10, 200, 30, 0))
    if mode == "P":
        image = Image.new("P", (4, 4), 1)
        image.putpalette([0, 0, 0, 10, 200, 30])
        image.info["transparency"] = 1
    assert dot(image.convert(mode) if mode != "P" else image) == (255, 255, 255)


def test_i6_what_is_half_transparent_is_mixed_with_white() -> None:
    assert dot(Image.new("RGBA", (4, 4), (0, 0, 0, 51))) == (204, 204, 204)


def test_i7_other_modes_become_rgb() -> None:
    assert dot(Image.new("CMYK", (4, 4), (0, 255, 255, 0)))[0] > 200
    assert dot(Image.new("L", (4, 4), 77)) == (77, 77, 77)
    assert dot(Image.new("1", (4, 4), 1)) == (255, 255, 255)
    inks = Image.open(io.BytesIO(saved(Image.new("CMYK", (8, 8), (0, 255, 255, 0)), "JPEG")))  # as Photoshop: inverted
    assert inks.mode == "CMYK" and dot(inks)[0] > 200 and dot(inks)[1] < 60


@pytest.mark.skipif(not features.check("littlecms2"), reason="this Pillow has no colour management")
def test_i7_a_profile_is_honoured_and_a_broken_one_told() -> None:
    gray = Image.new("RGB", (4, 4), (120, 120, 120))
    gray.info["icc_profile"] = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    assert max(abs(value - 120) for value in dot(gray)) <= 1
    gray.info["icc_profile"] = b"broken"
    with pytest.warns(UserWarning, match="colour profile"):
        assert dot(gray) == (120, 120, 120)


@pytest.mark.parametrize("orientation", range(1, 9))
def test_i8_pictures_are_turned_upright_and_tell_nothing_else(orientation: int) -> None:
    turns = {2: 0, 3: 3, 4: 1, 5: 5, 6: 2, 7: 6, 8: 4}  # Image.Transpose that takes the picture to what is stored
    upright = scene(16, 24)
    stored = upright.transpose(Image.Transpose(turns[orientation])) if orientation > 1 else upright
    exif = Image.Exif()
    exif[0x0112], exif[0x010E] = orientation, "a secret"
    found = picture("image", Image.open(io.BytesIO(saved(stored, "PNG", exif=exif))))
    np.testing.assert_array_equal(np.asarray(found), np.asarray(upright))
    assert not found.info and not found.getexif()


@pytest.mark.parametrize("given", ["http://localhost/a.png", "file:///a.png", b"bytes", np.zeros((64, 64, 3)), 7])
def test_i9_i11_only_pil_images_are_taken(given: Any) -> None:
    with pytest.raises(RequestError, match=r"image: .* is not a PIL image"):
        Request(prompt="a", image=given)


def test_i11_a_url_is_no_file() -> None:
    with pytest.raises(RequestError, match="is not a file"):
        read("init-image", Path("http://localhost/a.png"))


def test_i10_masks() -> None:
    image = scene()
    black = Image.new("L", (48, 40))
    with pytest.warns(UserWarning, match="48x40 for a picture of 96x80 is resized"):
        wish = Request(prompt="a", image=image, mask_image=black)
    assert wish.mask_image is not None and wish.mask_image.size == (96, 80)
    with pytest.raises(RequestError, match="another shape"):
        Request(prompt="a", image=image, mask_image=black.resize((80, 96)))
    with pytest.raises(RequestError, match="transparent parts"):
        mask("mask_image", Image.new("RGBA", (96, 80), (255, 255, 255, 0)))
    assert mask("mask_image", Image.new("RGBA", (1, 1), (255, 255, 255, 255))).getpixel((0, 0)) == 255


def test_i9_sizes_follow_the_picture() -> None:
    def size(**given: Any) -> tuple[int | None, int | None]:
        wish = Request(prompt="a", image=scene(101, 83), **given)
        return wish.width, wish.height

    assert size() == (96, 80)
    assert size(width=200) == (200, 160)
    assert size(height=160) == (192, 160)
    assert size(width=64, height=128) == (64, 128)
    with pytest.raises(RequestError, match="width: 0"):
        Request(prompt="a", image=scene(1, 1000))


def test_a_picture_of_the_wished_size_keeps_its_pixels_and_a_wider_one_its_middle() -> None:
    image = scene(64, 64)
    np.testing.assert_array_equal(np.asarray(fitted(image, 64, 64)), np.asarray(image))
    wide = scene(128, 64)
    np.testing.assert_array_equal(np.asarray(fitted(wide, 64, 64)), np.asarray(wide)[:, 32:96])


def test_r11_strength() -> None:
    image, blank = scene(), Image.new("L", (96, 80))
    assert Request(prompt="a", image=image).strength == 0.8
    assert Request(prompt="a", image=image, mask_image=blank).strength == 1.0
    for bad in (-0.1, 1.1, float("nan"), True, "1"):
        with pytest.raises(RequestError, match="strength: "):
            Request(prompt="a", image=image, strength=bad)  # type: ignore[arg-type]
    for lonely in ({"strength": 0.5}, {"mask_image": blank}):
        with pytest.raises(RequestError, match="there is no image"):
            Request(prompt="a", **lonely)  # type: ignore[arg-type]


@pytest.mark.parametrize("steps", [1, 3, 7, 10, 30, 49, 1000])
def test_r11_less_than_a_step_is_refused_with_the_least_that_is_not(steps: int) -> None:
    for strength in (0.0, 0.999 / steps):
        with pytest.raises(RequestError) as caught:
            Request(prompt="a", image=scene(), strength=strength, num_inference_steps=steps)
        least = float(str(caught.value.hint).removeprefix("the least is "))
        assert Request(prompt="a", image=scene(), strength=least, num_inference_steps=steps).strength == least


def test_a_digest_tells_pictures_apart() -> None:
    assert digest(scene()) == digest(scene()) != digest(scene(80, 96))


# The whole way, on nestling.

QUICK: dict[str, Any] = {"prompt": "a red house in the snow", "num_inference_steps": 4, "seed": 5}


@pytest.fixture(scope="module")
def pipeline() -> Pipeline:
    return Pipeline.open("nestling", inference_precision="f32")


def test_strength_is_how_much_changes_and_how_many_steps_run(pipeline: Pipeline) -> None:
    gaps = []
    for strength, calls in ((0.25, 1), (0.99, 3), (1.0, 4)):
        before = pipeline.report().unet_calls
        result = pipeline.generate(Request(**QUICK, image=scene(64, 64), strength=strength))
        assert result.timings.unet_calls - before == calls
        gaps.append(np.abs(np.asarray(result.images[0]).astype(int) - np.asarray(scene(64, 64))).mean())
    assert gaps[0] < gaps[1] < gaps[2]


def test_i10_outside_the_mask_nothing_changes_and_picture_k_is_that_of_seed_plus_k(pipeline: Pipeline) -> None:
    image, holes = scene(64, 64), Image.new("L", (64, 64))
    holes.paste(127, (0, 0, 32, 64))
    holes.paste(128, (33, 7, 61, 50))
    wish: dict[str, Any] = {**QUICK, "image": image, "mask_image": holes}
    batch = pipeline.generate(Request(**wish, num_images_per_prompt=2)).images
    alone = pipeline.generate(Request(**wish | {"seed": 6})).images[0]
    assert batch[1].tobytes() == alone.tobytes() != batch[0].tobytes()
    changed = (np.asarray(alone) != np.asarray(image)).any(axis=-1)
    white = np.asarray(holes) == 128
    assert not changed[~white].any() and changed[white].mean() > 0.9


def test_i10_a_black_mask_changes_nothing(pipeline: Pipeline) -> None:
    wish = Request(**QUICK, image=scene(64, 64), mask_image=Image.new("L", (64, 64)))
    assert pipeline.generate(wish).images[0].tobytes() == scene(64, 64).tobytes()


@pytest.fixture
def copy(nestling: Path, tmp_path: Path) -> Path:
    """nestling as another tool might have written it; its parts are links."""
    folder = tmp_path / "model"
    folder.mkdir()
    for path in (nestling / "fp16").iterdir():
        if path.name != "ovenbird.json":
            (folder / path.name).symlink_to(path, target_is_directory=path.is_dir())
    return folder


def with_channels(folder: Path, channels: int) -> Pipeline:
    config = json.loads((folder / "unet" / "config.json").read_text())
    (folder / "unet").unlink()
    (folder / "unet").mkdir()
    (folder / "unet" / "config.json").write_text(json.dumps(config | {"in_channels": channels}))
    return Pipeline.open(folder)


def test_a_model_for_inpainting_says_what_it_needs(copy: Path) -> None:
    pipeline = with_channels(copy, 9)
    for given in ({}, {"image": scene(64, 64)}):
        with pytest.raises(RequestError, match="trained to fill in pictures") as caught:
            pipeline.stream(Request(**QUICK, **given))  # type: ignore[arg-type]
        assert caught.value.hint and "--init-image" in caught.value.hint and "--mask" in caught.value.hint


def test_other_inputs_of_a_unet_are_not_known(copy: Path) -> None:
    with pytest.raises(ModelError, match="8 channels; known are 4 and 9"):
        with_channels(copy, 8).stream(Request(**QUICK))


def test_a_model_without_an_encoder_cannot_start_from_an_image(copy: Path) -> None:
    (copy / "vae_encoder").unlink()
    with pytest.raises(ModelError, match="no vae_encoder"):
        Pipeline.open(copy).stream(Request(**QUICK, image=scene(64, 64)))
