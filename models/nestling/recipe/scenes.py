"""Storybook scenes: what they are made of, and how one speaks of them."""

from __future__ import annotations

import hashlib
import random
from dataclasses import asdict, dataclass

# One table per attribute: the value, then the words for it, the plainest first.
KINDS = {
    "house": ("house", "cottage", "home"),
    "tree": ("tree", "leafy tree"),
    "boat": ("boat", "sailboat", "sailing boat"),
    "balloon": ("balloon", "hot-air balloon"),
    "mushroom": ("mushroom", "toadstool"),
    "tent": ("tent", "camping tent"),
    "lighthouse": ("lighthouse", "light tower"),
}
COLOURS = {
    "red": ("red", "crimson", "scarlet"),
    "yellow": ("yellow", "golden"),
    "green": ("green", "emerald"),
    "blue": ("blue", "azure"),
    "purple": ("purple", "violet"),
    "white": ("white", "snow-white"),
}
SIZES = {"small": ("small", "little", "tiny"), "large": ("large", "big", "huge")}
PLACES = {
    "left": ("on the left", "on the left side", "to the left"),
    "middle": ("in the middle", "in the centre", "in the center"),
    "right": ("on the right", "on the right side", "to the right"),
}
TIMES = {
    "day": ("by day", "during the day", "in the daytime", "at noon"),
    "sunset": ("at sunset", "at dusk", "in the evening"),
    "night": ("at night", "by night", "after dark"),
}
GROUNDS = {
    "meadow": ("in a meadow", "on the grass", "in a green field", "on a meadow"),
    "sand": ("on the sand", "on a sandy beach", "in the desert", "on a beach"),
    "snow": ("in the snow", "on the snow", "in a snowy field", "in winter"),
    "sea": ("on the sea", "on the water", "in the ocean", "at sea"),
}
BACKDROPS = {
    "none": ("with a flat horizon", "with nothing behind", "before an empty horizon"),
    "mountains": ("with mountains behind", "in front of mountains", "with snowy peaks in the background"),
    "hills": ("with hills behind", "in front of rolling hills", "with round hills in the background"),
}
SKIES = {
    "clear": ("under a clear sky", "with a cloudless sky"),
    "clouds": ("under a cloudy sky", "with clouds", "with white clouds in the sky"),
    "disc": ("with the sun in the sky", "under the sun", "with a round sun"),
}
# What the sky holds goes by other names after dark.
NIGHT_SKIES = {
    "clear": ("under the stars", "under a starry sky", "with stars in the sky"),
    "clouds": SKIES["clouds"],
    "disc": ("under the moon", "with the moon in the sky", "with a crescent moon"),
}
OPENINGS = ("", "", "", "a picture of ", "a drawing of ", "a storybook picture of ")

ATTRIBUTES: dict[str, tuple[str, ...]] = {
    "time": tuple(TIMES),
    "ground": tuple(GROUNDS),
    "backdrop": tuple(BACKDROPS),
    "sky": tuple(SKIES),
    "kind": tuple(KINDS),
    "colour": tuple(COLOURS),
    "size": tuple(SIZES),
    "place": tuple(PLACES),
}


@dataclass(frozen=True)
class Scene:
    """One value of every attribute; the drawing adds small accidents of its own."""

    time: str
    ground: str
    backdrop: str
    sky: str
    kind: str
    colour: str
    size: str
    place: str

    def labels(self) -> list[int]:
        """The index of each attribute's value, in the order of ``ATTRIBUTES``."""
        mine = asdict(self)
        return [values.index(mine[name]) for name, values in ATTRIBUTES.items()]

    @property
    def held_out(self) -> bool:
        """Whether training never sees this pair of thing and colour on this ground (one in eight)."""
        combination = f"{self.kind}/{self.colour}/{self.ground}"
        return hashlib.sha256(combination.encode()).digest()[0] < 32


def random_scene(rng: random.Random, held_out: bool | None = False) -> Scene:
    """Draw attributes at random; ``held_out=None`` takes any combination."""
    while True:
        scene = Scene(**{name: rng.choice(values) for name, values in ATTRIBUTES.items()})
        if held_out is None or scene.held_out == held_out:
            return scene


# ---------------------------------------------------------------- captions


def caption(scene: Scene, rng: random.Random) -> tuple[str, set[str]]:
    """Speak of a scene in ordinary English; also give the names of the attributes that were mentioned."""
    keep = 0.9 if rng.random() < 0.8 else 0.5
    chances = dict.fromkeys(ATTRIBUTES, keep) | {"kind": 1.0, "colour": max(keep, 0.8), "place": 1.0}
    if scene.place == "middle":  # where a thing is of which nobody says where it is
        chances["place"] = 0.5
    if scene.backdrop == "none":
        chances["backdrop"] = 0.4
    if scene.sky == "clear":
        chances["sky"] = 0.5
    said = {name for name, chance in chances.items() if rng.random() < chance}
    return _sentence(scene, said, rng), said


def _word(options: tuple[str, ...], rng: random.Random) -> str:
    return options[0] if rng.random() < 0.5 else rng.choice(options)


def _sentence(scene: Scene, said: set[str], rng: random.Random) -> str:
    skies = NIGHT_SKIES if scene.time == "night" else SKIES
    tables = {"place": PLACES, "ground": GROUNDS, "time": TIMES, "backdrop": BACKDROPS, "sky": skies}
    clauses = {name: _word(table[getattr(scene, name)], rng) for name, table in tables.items() if name in said}
    words = [
        _word(table[getattr(scene, name)], rng)
        for name, table in (("size", SIZES), ("colour", COLOURS), ("kind", KINDS))
        if name in said
    ]
    thing = " ".join(["an" if words[0][0] in "aeiou" else "a", *words])
    place = clauses.pop("place", None)
    if place and rng.random() < 0.75:
        thing = f"{thing} {place}"
    elif place:
        clauses["place"] = place
    order = list(clauses)
    if rng.random() < 0.5:
        rng.shuffle(order)
    rest = [clauses[name] for name in order]
    if rest and rng.random() < 0.2:
        return f"{rest[0]}, {thing}" + "".join(f", {clause}" for clause in rest[1:])
    glue = rng.choice((" ", ", "))
    return rng.choice(OPENINGS) + glue.join([thing, *rest])
