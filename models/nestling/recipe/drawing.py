"""How a scene is drawn, and which of its cells matter."""

from __future__ import annotations

import random

import numpy as np
from PIL import Image, ImageDraw

from scenes import Scene

RGB = tuple[int, int, int]

SKY_COLOURS = {  # top, horizon
    "day": ((96, 172, 236), (206, 234, 250)),
    "sunset": ((122, 76, 150), (255, 178, 104)),
    "night": ((16, 22, 60), (52, 64, 124)),
}
GROUND_COLOURS = {
    "meadow": ((142, 200, 96), (84, 154, 70)),
    "sand": ((240, 208, 140), (204, 158, 92)),
    "snow": ((248, 250, 253), (218, 230, 244)),
    "sea": ((84, 158, 212), (34, 92, 164)),
}
LIGHT = {"day": (1.0, 1.0, 1.0), "sunset": (1.0, 0.84, 0.78), "night": (0.42, 0.48, 0.72)}
THING_LIGHT = {"day": (1.0, 1.0, 1.0), "sunset": (1.0, 0.94, 0.90), "night": (0.80, 0.82, 0.92)}
PAINT: dict[str, RGB] = {
    "red": (216, 46, 46),
    "yellow": (250, 206, 48),
    "green": (52, 158, 72),
    "blue": (48, 104, 222),
    "purple": (146, 66, 192),
    "white": (248, 248, 244),
}
INK: RGB = (46, 40, 56)
PLACE_CENTRES = {"left": 0.25, "middle": 0.5, "right": 0.75}
SIZE_RANGES = {"small": (0.21, 0.24), "large": (0.36, 0.41)}


def tint(colour: RGB, light: tuple[float, float, float]) -> RGB:
    """Multiply a colour by the light that falls on it."""
    red, green, blue = (round(min(255.0, c * part)) for c, part in zip(colour, light, strict=True))
    return red, green, blue


def darker(colour: RGB, by: float = 0.7) -> RGB:
    """The same hue with less light."""
    return tint(colour, (by, by, by))


def _gradient(top: RGB, bottom: RGB, width: int, height: int) -> Image.Image:
    share = np.linspace(0.0, 1.0, max(height, 1))[:, None]
    rows = np.array(top) * (1 - share) + np.array(bottom) * share
    return Image.fromarray(np.repeat(rows[:, None].round().astype(np.uint8), width, axis=1))


class Painter:
    """Draws one scene on a canvas of twice the size, so that reducing it makes the edges smooth."""

    def __init__(self, scene: Scene, rng: random.Random, width: int, height: int) -> None:
        self.scene, self.rng = scene, rng
        self.width, self.height = 2 * width, 2 * height
        self.unit = float(np.sqrt(self.width * self.height)) * 0.97
        self.horizon = round(self.height * rng.uniform(0.58, 0.64))
        self.image = Image.new("RGB", (self.width, self.height))
        self.draw = ImageDraw.Draw(self.image)
        self.light = LIGHT[scene.time]

    def paint(self) -> Image.Image:
        """The finished picture, at the size asked for."""
        self._sky()
        self._backdrop()
        self._ground()
        self._thing()
        return self.image.reduce(2)

    # Everything below draws in pixels of the big canvas.

    def _polygon(self, points: list[tuple[float, float]], fill: RGB, line: float = 3.2) -> None:
        self.draw.polygon(points, fill=fill)
        if line:
            self.draw.line([*points, points[0], points[1]], fill=self.ink, width=round(line), joint="curve")

    def _ellipse(self, x: float, y: float, rx: float, ry: float, fill: RGB, line: float = 3.2) -> None:
        box = (x - rx, y - ry, x + rx, y + ry)
        self.draw.ellipse(box, fill=fill, outline=self.ink if line else None, width=round(line))

    @property
    def ink(self) -> RGB:
        return tint(INK, THING_LIGHT[self.scene.time])

    def _sky(self) -> None:
        rng, unit = self.rng, self.unit
        self.image.paste(_gradient(*SKY_COLOURS[self.scene.time], self.width, self.horizon + 1), (0, 0))
        if self.scene.sky == "clear" and self.scene.time == "night":
            for _ in range(7):
                x, y = rng.uniform(0.04, 0.96) * self.width, rng.uniform(0.05, 0.42) * self.height
                self._ellipse(x, y, 3.6, 3.6, (250, 246, 210), line=0)
        if self.scene.sky == "disc":
            self._sun_or_moon()
        if self.scene.sky == "clouds":
            white = tint((252, 253, 255), {"night": (0.5, 0.54, 0.72)}.get(self.scene.time, self.light))
            for slot in (0.2, 0.55, 0.88):
                x = (slot + rng.uniform(-0.08, 0.08)) * self.width
                y, r = rng.uniform(0.12, 0.24) * self.height, rng.uniform(0.055, 0.07) * unit
                for dx, dy, part in ((-1.1, 0.25, 0.72), (0, -0.1, 1.0), (1.1, 0.2, 0.78)):
                    self._ellipse(x + dx * r, y + dy * r, r * part * 1.1, r * part * 0.8, white, line=0)

    def _sun_or_moon(self) -> None:
        rng, unit, time = self.rng, self.unit, self.scene.time
        x, r = rng.choice((0.16, 0.5, 0.84)) * self.width, 0.085 * unit
        x += rng.uniform(-0.04, 0.04) * self.width
        y = rng.uniform(0.15, 0.2) * self.height
        if time == "night":
            self._ellipse(x, y, r, r, (250, 244, 214), line=0)
            self._ellipse(x + 0.5 * r, y - 0.22 * r, 0.82 * r, 0.82 * r, (24, 31, 74), line=0)
        else:
            self._ellipse(x, y, r, r, (255, 226, 92) if time == "day" else (255, 122, 74), line=0)

    def _backdrop(self) -> None:
        if self.scene.backdrop == "mountains":
            self._mountains()
        if self.scene.backdrop == "hills":
            fills = ((104, 168, 118), (72, 142, 100))
            for index, slot in enumerate((0.22, 0.78)):
                x = (slot + self.rng.uniform(-0.08, 0.08)) * self.width
                ry = self.rng.uniform(0.15, 0.19) * self.height
                self._ellipse(x, self.horizon + 4, 0.36 * self.width, ry, tint(fills[index], self.light), line=0)

    def _mountains(self) -> None:
        rock, cap = tint((124, 132, 160), self.light), tint((250, 251, 255), self.light)
        for slot in (0.16, 0.84, 0.5):
            x = (slot + self.rng.uniform(-0.05, 0.05)) * self.width
            tall, wide = self.rng.uniform(0.26, 0.34) * self.height, 0.27 * self.width
            top = self.horizon - tall
            self._polygon([(x - wide, self.horizon + 2), (x, top), (x + wide, self.horizon + 2)], rock, line=0)
            snow = [(x - wide * 0.3, top + tall * 0.3), (x, top), (x + wide * 0.3, top + tall * 0.3)]
            teeth = [(x + wide * 0.1, top + tall * 0.22), (x - wide * 0.08, top + tall * 0.34)]
            self._polygon([*snow, *teeth], cap, line=0)

    def _ground(self) -> None:
        near, far = GROUND_COLOURS[self.scene.ground][1], GROUND_COLOURS[self.scene.ground][0]
        rows = self.height - self.horizon
        strip = _gradient(tint(far, self.light), tint(near, self.light), self.width, rows)
        self.image.paste(strip, (0, self.horizon))
        if self.scene.ground == "sea":
            foam = tint((176, 214, 240), self.light)
            for share in (0.2, 0.5, 0.82):
                y, half = self.horizon + share * rows, 0.05 * self.unit
                for slot in (0.15, 0.5, 0.85):
                    x = (slot + self.rng.uniform(-0.1, 0.1)) * self.width
                    self.draw.arc((x - half, y - half * 0.3, x + half, y + half * 0.5), 200, 340, foam, 4)

    def _thing(self) -> None:
        scene, rng = self.scene, self.rng
        x = (PLACE_CENTRES[scene.place] + rng.uniform(-0.03, 0.03)) * self.width
        size = rng.uniform(*SIZE_RANGES[scene.size]) * self.unit
        base = self.horizon + rng.uniform(0.42, 0.56) * (self.height - self.horizon)
        if scene.kind == "balloon":
            base = self.horizon - rng.uniform(0.0, 0.08) * self.height + 0.08 * self.unit
        elif scene.ground == "sea" and scene.kind != "boat":
            island = tint((236, 208, 148), self.light)
            self._ellipse(x, base, size * 0.68, size * 0.15, island, line=0)
        paint = tint(PAINT[scene.colour], THING_LIGHT[scene.time])
        getattr(self, f"_{scene.kind}")(x, base, size, paint)

    def _lit(self, colour: RGB) -> RGB:
        return tint(colour, THING_LIGHT[self.scene.time])

    @property
    def window(self) -> RGB:
        return (255, 226, 120) if self.scene.time == "night" else self._lit((150, 200, 230))

    def _house(self, x: float, base: float, s: float, paint: RGB) -> None:
        wall = base - 0.58 * s
        self._polygon([(x - 0.42 * s, wall), (x + 0.42 * s, wall), (x + 0.42 * s, base), (x - 0.42 * s, base)], paint)
        roof = [(x - 0.54 * s, wall), (x, wall - 0.44 * s), (x + 0.54 * s, wall)]
        self._polygon(roof, darker(paint, 0.62))
        door = [
            (x - 0.26 * s, base - 0.34 * s),
            (x - 0.06 * s, base - 0.34 * s),
            (x - 0.06 * s, base),
            (x - 0.26 * s, base),
        ]
        self._polygon(door, self._lit((120, 80, 50)), line=0)
        self.draw.rectangle((x + 0.08 * s, base - 0.42 * s, x + 0.29 * s, base - 0.2 * s), fill=self.window)

    def _tree(self, x: float, base: float, s: float, paint: RGB) -> None:
        trunk = self._lit((122, 82, 52))
        self._polygon(
            [
                (x - 0.09 * s, base - 0.5 * s),
                (x + 0.09 * s, base - 0.5 * s),
                (x + 0.11 * s, base),
                (x - 0.11 * s, base),
            ],
            trunk,
        )
        parts = ((-0.24, -0.55, 0.26), (0.24, -0.55, 0.26), (0.0, -0.82, 0.32))
        for dx, dy, r in parts:
            self._ellipse(x + dx * s, base + dy * s, r * s, r * s, paint)
        for dx, dy, r in parts:
            self._ellipse(x + dx * s, base + dy * s, r * s - 3, r * s - 3, paint, line=0)

    def _boat(self, x: float, base: float, s: float, paint: RGB) -> None:
        self.draw.line((x, base - 0.3 * s, x, base - 1.05 * s), fill=self.ink, width=4)
        sail = self._lit((252, 244, 222))
        self._polygon(
            [(x + 0.04 * s, base - 1.0 * s), (x + 0.42 * s, base - 0.38 * s), (x + 0.04 * s, base - 0.38 * s)], sail
        )
        self._polygon(
            [(x - 0.05 * s, base - 0.9 * s), (x - 0.05 * s, base - 0.38 * s), (x - 0.34 * s, base - 0.38 * s)], sail
        )
        hull = [
            (x - 0.54 * s, base - 0.3 * s),
            (x + 0.54 * s, base - 0.3 * s),
            (x + 0.34 * s, base + 0.04 * s),
            (x - 0.34 * s, base + 0.04 * s),
        ]
        self._polygon(hull, paint)

    def _balloon(self, x: float, base: float, s: float, paint: RGB) -> None:
        cy, r = base - 0.82 * s, 0.46 * s
        self._polygon(
            [
                (x - 0.3 * s, cy + 0.3 * s),
                (x + 0.3 * s, cy + 0.3 * s),
                (x + 0.1 * s, base - 0.18 * s),
                (x - 0.1 * s, base - 0.18 * s),
            ],
            paint,
        )
        self._ellipse(x, cy, r, r, paint)
        self._ellipse(x, cy, 0.17 * s, r - 3, darker(paint, 0.78), line=0)
        basket = [
            (x - 0.1 * s, base - 0.16 * s),
            (x + 0.1 * s, base - 0.16 * s),
            (x + 0.08 * s, base),
            (x - 0.08 * s, base),
        ]
        self._polygon(basket, self._lit((150, 104, 62)))

    def _mushroom(self, x: float, base: float, s: float, paint: RGB) -> None:
        stem = [
            (x - 0.13 * s, base - 0.5 * s),
            (x + 0.13 * s, base - 0.5 * s),
            (x + 0.17 * s, base),
            (x - 0.17 * s, base),
        ]
        self._polygon(stem, self._lit((250, 238, 214)))
        top = base - 0.45 * s
        box = (x - 0.52 * s, top - 0.52 * s, x + 0.52 * s, top + 0.52 * s)
        self.draw.chord(box, 180, 360, fill=paint, outline=self.ink, width=3)
        dot = self._lit((255, 252, 240)) if self.scene.colour != "white" else self._lit((206, 180, 150))
        for dx, dy in ((-0.27, -0.18), (0.02, -0.32), (0.28, -0.14)):
            self._ellipse(x + dx * s, top + dy * s, 0.075 * s, 0.075 * s, dot, line=0)

    def _tent(self, x: float, base: float, s: float, paint: RGB) -> None:
        self._polygon([(x - 0.56 * s, base), (x, base - 0.8 * s), (x + 0.56 * s, base)], paint)
        self._polygon([(x - 0.17 * s, base), (x, base - 0.52 * s), (x + 0.17 * s, base)], darker(paint, 0.4), line=0)

    def _lighthouse(self, x: float, base: float, s: float, paint: RGB) -> None:
        def edge(share: float) -> float:
            return (0.27 - 0.11 * share) * s

        tall = 1.12 * s
        band = self._lit((250, 248, 240)) if self.scene.colour != "white" else self._lit((168, 172, 184))
        tower = [(x - edge(0), base), (x - edge(1), base - tall), (x + edge(1), base - tall), (x + edge(0), base)]
        self._polygon(tower, paint)
        for low, high in ((0.3, 0.5), (0.72, 0.9)):
            y0, y1 = base - low * tall, base - high * tall
            stripe = [
                (x - edge(low) + 2, y0),
                (x - edge(high) + 2, y1),
                (x + edge(high) - 2, y1),
                (x + edge(low) - 2, y0),
            ]
            self._polygon(stripe, band, line=0)
        top = base - tall
        lamp = [
            (x - 0.12 * s, top - 0.18 * s),
            (x + 0.12 * s, top - 0.18 * s),
            (x + 0.12 * s, top),
            (x - 0.12 * s, top),
        ]
        self._polygon(lamp, (255, 232, 130))
        self._polygon(
            [(x - 0.18 * s, top - 0.18 * s), (x, top - 0.34 * s), (x + 0.18 * s, top - 0.18 * s)], darker(paint, 0.62)
        )


def render(scene: Scene, rng: random.Random, width: int = 128, height: int = 128) -> Image.Image:
    """Draw a scene; the same ``rng`` state gives the same picture."""
    return Painter(scene, rng, width, height).paint()


def importance(scene: Scene, rows: int, columns: int) -> np.ndarray:
    """How much each cell of a grid says about the caption: the thing is a tenth of the picture and most of the words.

    Known from place and size alone, so that weighting an error with it favours no answer.  Mean 1.
    """
    y, x = np.meshgrid((np.arange(rows) + 0.5) / rows, (np.arange(columns) + 0.5) / columns, indexing="ij")
    unit = np.sqrt(rows * columns) * 0.97 * SIZE_RANGES[scene.size][1]
    wide, tall = unit / columns, unit / rows
    base = 0.66 if scene.kind == "balloon" else 0.83
    thing = (np.abs(x - PLACE_CENTRES[scene.place]) < 0.55 * wide + 0.03) & (y < base) & (y > base - 1.3 * tall - 0.05)
    weight = np.where(thing, 5.0, np.where((y > 0.05) & (y < 0.32), 4.0, 1.0))
    return weight / weight.mean()
