"""What the scripts of CompVis read and write: prompts line by line, numbered samples, grids."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from itertools import count
from pathlib import Path

from PIL import Image

from ovenbird.errors import RequestError, ResourceError
from ovenbird.request import MAX_PROMPT_BYTES

GAP = 2
"""Black pixels around each picture of a grid."""
MOST_PIXELS = 128 << 20
"""Of a grid, which is in memory as a whole."""
MOST_TOLD = 20
Line = tuple[int, str | RequestError]
"""Its number, from 1, and the prompt, or why it is none."""


def prompts(path: Path) -> Iterator[Line]:
    """The lines of a file that are not blank, in UTF-8, as they are asked for; a line is never held that is too long.

    Raises ``RequestError`` where the file cannot be read.
    """
    try:
        with path.open("rb") as file:
            for number in count(1):
                line = file.readline(MAX_PROMPT_BYTES + 1)
                if not line:
                    return
                whole = line.endswith(b"\n") or len(line) <= MAX_PROMPT_BYTES
                rest = line
                while not whole and rest and not rest.endswith(b"\n"):
                    rest = file.readline(MAX_PROMPT_BYTES)
                if line.strip():
                    yield number, _prompt(line, number) if whole else _refused(f"more than {MAX_PROMPT_BYTES} bytes")
    except OSError as error:
        raise RequestError(f"from-file: {path} cannot be read: {error.strerror}") from error


def _prompt(line: bytes, number: int) -> str | RequestError:
    try:
        return line.decode("utf-8-sig" if number == 1 else "utf-8").rstrip("\r\n")
    except UnicodeDecodeError as error:
        return _refused(f"byte {error.start + 1} is not UTF-8")


def _refused(why: str) -> RequestError:
    return RequestError(f"prompt: {why}")


class Failures:
    """Lines that gave no pictures: how many, and why the first of them."""

    def __init__(self) -> None:
        self.count, self.told = 0, list[str]()

    def add(self, number: int, error: Exception) -> None:
        """Note one."""
        self.count += 1
        if self.count <= MOST_TOLD:
            self.told.append(f"  line {number}: {error}")

    def check(self, path: Path, lines: int) -> None:
        """Raises ``RequestError`` that names them, if there are any, or if there was no prompt at all."""
        if not lines:
            raise RequestError(f"from-file: {path} holds no prompt", hint="a prompt a line")
        if self.count:
            more = [f"  and {self.count - MOST_TOLD} more"] if self.count > MOST_TOLD else []
            what = f"from-file: {self.count} of {lines} prompts in {path} failed"
            raise RequestError("\n".join([what, *self.told, *more]), hint="the others have their pictures")


class Folder:
    """An output folder, with numbers that go on behind the highest that is there."""

    def __init__(self, path: Path) -> None:
        """Nothing is made yet.  Raises ``RequestError`` where a folder cannot be."""
        self.path, self._samples = path, path / "samples"
        for place in (self._samples, *self._samples.parents):
            if place.exists() and not place.is_dir():
                raise RequestError(f"outdir: {place} is not a folder", hint="choose another name")
        self._sample = count(_next(self._samples, r"(\d+)\.png"))
        self._grid = count(_next(path, r"grid-(\d+)\.png"))

    def make(self) -> None:
        """Raises ``ResourceError``."""
        try:
            self._samples.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise ResourceError(f"{self._samples} cannot be made: {error.strerror}") from error

    def samples(self, count: int) -> list[Path]:
        """Names for so many pictures."""
        return [self._samples / f"{next(self._sample):05}.png" for _ in range(count)]

    def grid(self) -> Path:
        """The name for a grid."""
        return self.path / f"grid-{next(self._grid):04}.png"


def _next(folder: Path, pattern: str) -> int:
    found = (re.fullmatch(pattern, path.name) for path in (folder.iterdir() if folder.is_dir() else ()))
    return max((int(match[1]) for match in found if match), default=-1) + 1


def check_grid(size: tuple[int, int], count: int, columns: int) -> None:
    """Raises ``RequestError`` for a grid that is too large."""
    width, height = _grid_size(size, count, columns)
    if width * height > MOST_PIXELS:
        raise RequestError(
            f"n_iter: a grid of {count} pictures has {width}x{height} pixels, more than {MOST_PIXELS >> 20} million",
            hint="add --skip_grid, or ask for fewer",
        )


def grid(images: Sequence[Image.Image], columns: int) -> Image.Image:
    """Pictures of one size, row by row, on black, as torchvision's ``make_grid`` lays them."""
    width, height = images[0].size
    columns = min(columns, len(images))
    found = Image.new("RGB", _grid_size((width, height), len(images), columns))
    for place, image in enumerate(images):
        row, column = divmod(place, columns)
        found.paste(image, (GAP + column * (width + GAP), GAP + row * (height + GAP)))
    return found


def _grid_size(size: tuple[int, int], count: int, columns: int) -> tuple[int, int]:
    columns = min(columns, count)
    return GAP + columns * (size[0] + GAP), GAP + -(-count // columns) * (size[1] + GAP)
