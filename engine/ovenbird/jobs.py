"""Job files: a picture a line with any settings; read once, every line checked, kept aside for when its turn comes."""

from __future__ import annotations

import functools
import hashlib
import json
import tempfile
import unicodedata
from array import array
from bisect import bisect_right
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import groupby, islice
from pathlib import Path, PurePath
from typing import IO, Any

from PIL.Image import Image

from ovenbird import images, records, schedulers
from ovenbird.disk import is_file
from ovenbird.errors import RequestError
from ovenbird.records import ALSO, PAIRS, TYPES, Record, is_known, nearest
from ovenbird.request import Request

LONGEST_NAME_BYTES = 200  # file systems have 255, and names get longer: -0, -preview
MOST_TOLD = 20
IN_MEMORY_BYTES = 32 << 20
PICTURES = ("image", "mask_image")
APART = ("seed", "variation_seed", "variation_strength", "prompt", "negative_prompt", "to_prompt", "blend", *PICTURES)
"""Fields of which pictures that are drawn side by side may have their own."""
FOR = {
    "mask_image": "image",
    "strength": "image",
    "blend": "to_prompt",
    "hires_upscaler": "hires_scale",
    "hires_strength": "hires_scale",
    "hires_steps": "hires_scale",
}
"""Fields that say nothing alone; as defaults they are for the lines that have the other."""

Settings = Mapping[str, Any]
"""Fields of ``Request``; pictures by their paths."""


@dataclass(frozen=True)
class Item:
    """One picture of a job file."""

    number: int
    """Among all pictures of the file, from 0."""
    id: str
    file: str
    """Its name in the folder."""


@dataclass(frozen=True)
class Job:
    """One line that passed."""

    line: int
    id: str
    file: str
    given: Settings
    sha256: Mapping[str, str]
    """Of the files of its pictures."""


class Jobs:
    """The jobs of a file.  In memory are a few numbers for each; the rest lies in a file of its own."""

    @classmethod
    @contextmanager
    def read(cls, path: Path, defaults: Settings) -> Iterator[Jobs]:
        """Everything read and checked; ``defaults`` are for what a line does not say.

        Raises ``RequestError`` that tells of all bad lines, by line, field, value and rule.
        """
        with tempfile.SpooledTemporaryFile(IN_MEMORY_BYTES) as spool:
            yield cls(path, defaults, spool)

    def __init__(self, path: Path, defaults: Settings, spool: IO[bytes]) -> None:
        self.defaults = defaults
        self.kinds: list[int] = []
        """The first job of each kind; jobs of one kind may be drawn side by side."""
        self._spool = spool
        self._starts, self._kinds, self._firsts = array("Q"), array("L"), array("Q", [0])
        self._read = functools.lru_cache(maxsize=4)(_picture)
        self._singles = functools.lru_cache(maxsize=1)(self._singles_of)
        digest, given = hashlib.sha256(), hashlib.sha256()
        kinds: dict[int, int] = {}
        names: set[str] = set()

        def take(line: int, pairs: Callable[[], list[tuple[str, Any]]]) -> None:
            job = self._job(line, pairs(), path.parent)
            kind, count = self._checked(job)
            _claim(names, job, count)
            given.update(repr(sorted(job.sha256.items())).encode())
            self._kinds.append(kinds.setdefault(kind, len(kinds)))
            if len(kinds) > len(self.kinds):
                self.kinds.append(len(self._starts))
            self._keep(job, count)

        self._checked(self._job(0, [("prompt", "")], path.parent))  # once, and not for every line
        _check_all(path, records.read(path, digest), take)
        if not self._starts:
            raise RequestError(f"jobs: {path} has no job in it", hint='a line is {"prompt": "a red house", "seed": 7}')
        self.sha256, self.images = digest.hexdigest(), given.hexdigest()

    def __len__(self) -> int:
        """How many pictures."""
        return self._firsts[-1]

    def item(self, number: int) -> Item:
        """The picture of this number."""
        index, k = self._place(number)
        job, count = self._job_at(index), self._firsts[index + 1] - self._firsts[index]
        return Item(number, job.id, _file(job.file, k, count))

    def items(self) -> Iterator[Item]:
        """All pictures in the file's order."""
        return map(self.item, range(len(self)))

    def units(self, size: int) -> Iterator[tuple[int, ...]]:
        """All pictures by number, up to ``size`` of one kind together: the same ones, whoever asks, and when."""
        order = sorted(range(len(self._kinds)), key=self._kinds.__getitem__)
        for _, alike in groupby(order, key=self._kinds.__getitem__):
            numbers = (n for index in alike for n in range(self._firsts[index], self._firsts[index + 1]))
            while unit := tuple(islice(numbers, size)):
                yield unit

    def single(self, number: int, seed: int, default_size: int) -> Request:
        """The settled request for one picture.  Seeds that are not given come from ``seed``, that of the whole run.

        Raises ``RequestError`` when one of its pictures is not what it was.
        """
        index, k = self._place(number)
        return self._singles(index, seed, default_size)[k]

    def check(self, check: Callable[[Request], None], path: Path) -> None:
        """Ask ``check``, which raises ``RequestError``, of the first job of each kind; tells of all that it refuses."""

        def take(_: int, request: Callable[[], Request]) -> None:
            check(request())

        jobs = map(self._job_at, self.kinds)
        _check_all(path, ((job.line, functools.partial(self._request, job)) for job in jobs), take)

    def _singles_of(self, index: int, seed: int, default_size: int) -> list[Request]:
        settings = self._settings(self._job_at(index))
        for name in ("seed", *(["variation_seed"] if settings.get("variation_strength") else [])):
            if settings.get(name) is None:
                settings[name] = _drawn(seed, self._firsts[index], name)
        return Request(**settings).settled(default_size).singles()

    def _job(self, line: int, pairs: list[tuple[str, Any]], folder: Path) -> Job:
        given = _named(pairs)
        wished = given.pop("id", None)
        name = f"{len(self._starts):05}" if wished is None else _id(wished)
        file = _file_name(given.pop("output", None), name)
        for field in PICTURES:
            if given.get(field) is not None:
                given[field] = str(folder / _text(field, given[field]))
        paths = {field: self._merged(given).get(field) for field in PICTURES}
        return Job(line, name, file, given, {field: _sha256(field, path) for field, path in paths.items() if path})

    def _checked(self, job: Job) -> tuple[int, int]:
        """Its kind, and of how many pictures it is.  Raises ``RequestError``."""
        settings = self._settings(job)
        if not isinstance(settings.get("prompt"), str):
            told = f"{settings['prompt']!r:.40} is not a string" if "prompt" in settings else "it is not given"
            raise RequestError(f"prompt: {told}")
        request = Request(**settings)
        if request.scheduler is not None:
            schedulers.sampler(request.scheduler)
        kind = request.like(*APART, "num_images_per_prompt"), *job.sha256.items()
        return hash(kind), request.num_images_per_prompt

    def _request(self, job: Job) -> Request:
        return Request(**self._settings(job))

    def _settings(self, job: Job) -> dict[str, Any]:
        """What ``Request`` takes, with pictures."""
        merged = self._merged(job.given)
        for field, sha256 in job.sha256.items():
            merged[field] = self._read(field, merged[field], sha256)
        for name, value in merged.items():
            if isinstance(value, list) and TYPES[name].startswith(PAIRS):
                merged[name] = tuple(value)
        return merged

    def _merged(self, given: Settings) -> dict[str, Any]:
        both = {**self.defaults, **given}
        return {
            name: value
            for name, value in both.items()
            if name in given or name not in FOR or both.get(FOR[name]) is not None
        }

    def _keep(self, job: Job, count: int) -> None:
        self._starts.append(self._spool.tell())
        self._firsts.append(self._firsts[-1] + count)
        self._spool.write(json.dumps([job.line, job.id, job.file, job.given, job.sha256]).encode() + b"\n")

    def _job_at(self, index: int) -> Job:
        self._spool.seek(self._starts[index])
        return Job(*json.loads(self._spool.readline()))

    def _place(self, number: int) -> tuple[int, int]:
        """Which job a picture is of, and which of its pictures."""
        index = bisect_right(self._firsts, number) - 1
        return index, number - self._firsts[index]


def _named(pairs: Iterable[tuple[str, Any]]) -> dict[str, Any]:
    """By the names of ``Request``'s fields."""
    found: dict[str, Any] = {}
    for name, value in pairs:
        if not is_known(name):
            raise RequestError(f"{name!r:.60} is not a setting of a job", hint=nearest(name))
        field = ALSO.get(name, name)
        if field in found:
            raise RequestError(f"{name}: it is given twice")
        found[field] = value
    return found


def _text(name: str, value: object) -> str:
    if not isinstance(value, str):
        raise RequestError(f"{name}: {value!r:.40} is not a string")
    return value


def _id(value: object) -> str:
    return str(value) if isinstance(value, int) and not isinstance(value, bool) else _text("id", value)


def _file_name(output: object, name: str) -> str:
    """A plain name in the folder: the output that is given, else the id's.  Raises ``RequestError``."""
    field, file = ("id", f"{name}.png") if output is None else ("output", _text("output", output))
    if file.startswith(".") or any(each in "/\\" or unicodedata.category(each) in ("Cc", "Cs") for each in file):
        raise RequestError(f"{field}: {file!r:.60} is not the name of a file in the folder", hint="leave out folders")
    if PurePath(file).suffix.lower() != ".png":
        raise RequestError(f"{field}: {file!r:.60} does not end in .png")
    if PurePath(file).stem.endswith("-preview"):
        raise RequestError(f"{field}: {file!r:.60} is the name of a preview")
    if len(file.encode()) > LONGEST_NAME_BYTES:
        raise RequestError(f"{field}: {file!r:.40} is longer than {LONGEST_NAME_BYTES} bytes")
    return file


def _file(name: str, k: int, count: int) -> str:
    return name if count == 1 else str(PurePath(name).with_stem(f"{PurePath(name).stem}-{k}"))


def _claim(names: set[str], job: Job, count: int) -> None:
    """Names that no other job has, not even where capitals are the same as small letters."""
    for kind, name in (("id", job.id), *(("output", _file(job.file, k, count)) for k in range(count))):
        key = f"{kind} {unicodedata.normalize('NFC', name).casefold() if kind == 'output' else name}"
        if key in names:
            raise RequestError(f"{kind}: {name!r:.60} is that of another line, too")
        names.add(key)


def _sha256(name: str, path: str) -> str:
    if not is_file(Path(path)):  # of a device, or of a pipe, there is no end
        raise RequestError(f"{name}: {path} is not a file")
    try:
        with Path(path).open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise RequestError(f"{name}: {path} cannot be read: {error.strerror}") from error


def _picture(name: str, path: str, sha256: str) -> Image:
    if _sha256(name, path) != sha256:
        raise RequestError(f"{name}: {path} has changed since the run began")
    return images.read(name, Path(path))


def _drawn(seed: int, number: int, name: str) -> int:
    """A seed of 32 bits for one job, always the same."""
    return int.from_bytes(hashlib.sha256(f"{seed} {number} {name}".encode()).digest()[:4])


def _check_all(path: Path, given: Iterable[Record], take: Callable[[int, Any], None]) -> None:
    """Give every record to ``take``.  Raises ``RequestError`` that tells of all that could not be read or taken."""
    bad: list[str] = []
    wrong = 0
    for line, read in given:
        try:
            take(line, read)
        except RequestError as error:
            wrong += 1
            if wrong <= MOST_TOLD:
                bad.append(f"  line {line}: {error}" + (f" ({error.hint})" if error.hint else ""))
    if wrong:
        more = [f"  and {wrong - MOST_TOLD} more"] if wrong > MOST_TOLD else []
        lines = "\n".join([f"jobs: lines of {path} that cannot be done: {wrong}", *bad, *more])
        raise RequestError(lines, hint="nothing was made; mend these lines")
