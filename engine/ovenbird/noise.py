"""Noise: the levels training knew, the levels a run stops at, and the draws themselves.

A noise level is one number, sigma, in ``x = clean + sigma * noise``.  Training numbers its levels 0..T-1 from low to
high and calls these numbers timesteps; a run walks down a few of them.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import NDArray

from ovenbird.errors import RequestError

Floats = NDArray[np.float32]
Draw = Callable[[Sequence[int]], Floats]
"""The next array of a stream of standard normal numbers, of any shape."""
Sigmas = NDArray[np.float64]  # (T,), sigma of every training timestep, ascending

PURE_NOISE = 2.0**24  # stands for a level without any signal, whose sigma is infinite
SEEDS = 2**64


# What training did.  Its tables are float32, and rounding them otherwise moves some timesteps of Karras ladders.


def training_betas(schedule: str, first: float, last: float, count: int) -> Floats:
    """The variance added at each training step: 'linear', 'scaled_linear' or 'squaredcos_cap_v2'; shape (count,)."""
    if schedule == "linear":
        return _linspace(first, last, count)
    if schedule == "scaled_linear":
        return _linspace(math.sqrt(first), math.sqrt(last), count) ** 2
    if schedule == "squaredcos_cap_v2":
        return _cosine_betas(count)
    raise ValueError(f"unknown beta schedule {schedule!r}")


def _linspace(first: float, last: float, count: int) -> Floats:
    """``torch.linspace`` in float32, bit for bit: a rounded step, walked from both ends towards the middle."""
    start, end = np.float32(first), np.float32(last)
    step = float((end - start) / np.float32(max(count - 1, 1)))
    index = np.arange(count)
    rising, falling = float(start) + step * index, float(end) - step * index[::-1]
    return np.where(index < count / 2, rising, falling).astype(np.float32)


def _cosine_betas(count: int) -> Floats:
    """Nichol and Dhariwal 2021: the share of signal falls like a squared cosine; betas stay at most 0.999."""
    signal = np.square(np.cos((np.arange(count + 1) / count + 0.008) / 1.008 * np.pi / 2))
    return np.minimum(1 - signal[1:] / signal[:-1], 0.999).astype(np.float32)


def zero_terminal_snr(betas: Floats) -> Floats:
    """Stretch the schedule until its last level is pure noise (Lin et al. 2024, algorithm 1)."""
    root = np.sqrt(_alphas_cumprod(betas))
    signal = ((root - root[-1]) * (root[0] / (root[0] - root[-1]))) ** 2
    return np.float32(1) - np.concatenate([signal[:1], signal[1:] / signal[:-1]])


def training_sigmas(betas: Floats, pure: float = PURE_NOISE) -> Sigmas:
    """Sigma of every training timestep; ``pure`` where no signal is left."""
    signal = _alphas_cumprod(betas)
    with np.errstate(divide="ignore"):
        sigmas: Floats = np.sqrt((np.float32(1) - signal) / signal)
    return np.where(signal > 0, sigmas.astype(np.float64), pure)


def _alphas_cumprod(betas: Floats) -> Floats:
    """The share of signal left at each timestep: multiplied up in double precision, kept in single, as torch does."""
    return np.cumprod((np.float32(1) - betas).astype(np.float64)).astype(np.float32)


# Where a run stops.


def spaced_timesteps(
    spacing: str, count: int, trained: int, offset: int, *, reach: int | None = None
) -> NDArray[np.float64]:
    """``count`` timesteps out of ``trained``, descending; not rounded for 'linspace' (Lin et al. 2024, table 2).

    They stay below ``reach``, if given; then 'trailing', which keeps its stride, has fewer.  Only 'leading' uses
    ``offset``.
    """
    reach = trained if reach is None else reach
    if spacing == "leading":
        return np.arange(count, dtype=np.float64)[::-1] * (reach // count) + offset
    if spacing == "linspace":
        return np.linspace(0, reach - 1, count)[::-1]
    if spacing == "trailing":
        # The range may hold one more entry, at -1, for counts like 61: rounding of its end.
        return np.arange(reach, 0, -trained / count, dtype=np.float64)[:count].round() - 1
    raise ValueError(f"unknown timestep spacing {spacing!r}")


def karras_sigmas(highest: float, lowest: float, count: int) -> Sigmas:
    """Descending levels, evenly spaced in the seventh root (Karras et al. 2022, equation 5)."""
    first, last = highest ** (1 / 7), lowest ** (1 / 7)
    roots: Sigmas = first + np.linspace(0, 1, count) * (last - first)
    return roots**7


def exponential_sigmas(highest: float, lowest: float, count: int) -> Sigmas:
    """Descending levels, evenly spaced in the logarithm."""
    return np.exp(np.linspace(math.log(highest), math.log(lowest), count))


def beta_sigmas(highest: float, lowest: float, count: int) -> Sigmas:
    """Descending levels, dense at both ends: the quantiles of Beta(0.6, 0.6) (Lee et al. 2024)."""
    return lowest + _beta_quantile(1 - np.linspace(0, 1, count), 0.6) * (highest - lowest)


def _beta_quantile(shares: NDArray[np.float64], shape: float) -> NDArray[np.float64]:
    """Where a Beta(shape, shape) distribution has these shares below: bisection of its lower half, and its mirror."""
    index = np.arange(60)
    falls = np.cumprod(np.where(index > 0, (index - shape) / np.maximum(index, 1), 1)) / (shape + index)

    def below(x: NDArray[np.float64]) -> NDArray[np.float64]:
        """Not normalised: a power series, whose terms halve up to the middle."""
        return x**shape * np.polynomial.polynomial.polyval(x, falls)

    wanted = np.minimum(shares, 1 - shares) * 2 * below(np.array(0.5))
    low, high = np.zeros_like(shares), np.full_like(shares, 0.5)
    for _ in range(60):
        middle = (low + high) / 2
        short = below(middle) < wanted
        low, high = np.where(short, middle, low), np.where(short, high, middle)
    return np.where(shares < 0.5, high, 1 - high)


def sigma_at(timesteps: NDArray[np.float64], trained: Sigmas) -> Sigmas:
    """Sigma of timesteps that need not be whole; those beyond training get its nearest level."""
    return np.interp(timesteps, np.arange(len(trained)), trained)


def timestep_at(sigmas: Sigmas, trained: Sigmas) -> NDArray[np.float64]:
    """The timesteps, not rounded, of any noise levels: linear in log sigma."""
    return np.interp(np.log(sigmas), np.log(trained.astype(np.float32)), np.arange(len(trained)))


# The draws.


class TorchNoise:
    """Standard normal numbers as ``torch.randn`` draws them from a CPU generator with the same seed.

    Equal to torch for draws of fewer than 16 numbers, otherwise within 5e-7 (its logarithm and cosine round otherwise).
    Like torch's, the generator is 32-bit: seeds that agree modulo 2^32 give the same noise.
    """

    def __init__(self, seed: int) -> None:
        """Start the stream; RequestError unless ``seed`` is a whole number in 0..2^64-1."""
        if isinstance(seed, bool) or not isinstance(seed, int | np.integer) or not 0 <= seed < SEEDS:
            raise RequestError(f"seed {seed!r:.40} is not a whole number from 0 to 2^64 - 1")
        self.seed = int(seed)
        self._words = np.random.RandomState(self.seed % 2**32)
        self._spare: float | None = None

    def __call__(self, shape: int | Sequence[int]) -> Floats:
        """The next array of the stream, float32, of any shape."""
        count = int(np.prod(shape))
        drawn = self._many(count) if count >= 16 else self._few(count)
        return drawn.reshape(shape)

    def _many(self, count: int) -> Floats:
        """Box-Muller in blocks of 16; a rest is covered by a new block over the last 16 places."""
        words = self._draw(count)
        whole = count - count % 16
        drawn = np.concatenate([_box_muller(words[:whole]), np.empty(count - whole, np.float32)])
        if whole < count:
            drawn[-16:] = _box_muller(self._draw(16))
        return drawn

    def _few(self, count: int) -> Floats:
        return np.array([self._one() for _ in range(count)], dtype=np.float32)

    def _one(self) -> float:
        """Box-Muller in double precision; its second number waits for the next call, even across larger draws."""
        if self._spare is not None:
            value, self._spare = self._spare, None
            return value
        angle, radius = 2 * math.pi * self._uniform(), math.sqrt(-2 * math.log1p(-self._uniform()))
        self._spare = radius * math.sin(angle)
        return radius * math.cos(angle)

    def _uniform(self) -> float:
        high, low = (int(word) for word in self._draw(2))
        return ((high << 32 | low) % 2**53) / 2**53

    def _draw(self, count: int) -> NDArray[np.uint32]:
        return self._words.randint(0, 2**32, size=count, dtype=np.uint32)


def _box_muller(words: NDArray[np.uint32]) -> Floats:
    """Blocks of 16 words to blocks of 16 normal numbers: eight radii, then the eight angles that go with them."""
    uniform = (words % 2**24).astype(np.float32).reshape(-1, 2, 8) * np.float32(2.0**-24)
    radius = np.sqrt(np.float32(-2) * np.log(np.float32(1) - uniform[:, 0]))
    angle = np.float32(2 * math.pi) * uniform[:, 1]
    return np.stack([radius * np.cos(angle), radius * np.sin(angle)], axis=1).reshape(-1)


def varied(noise: Draw, other: Draw, strength: float) -> Draw:
    """A stream on its way from one to the other, column by column of each channel, as in the web UI."""
    return lambda shape: slerp(noise(shape), other(shape), strength, axis=-2)


def slerp(low: Floats, high: Floats, share: float, axis: int) -> Floats:
    """Spherical interpolation (Shoemake, 1985) of the vectors along an axis; of parallel ones, a straight line.

    Vectors of one length keep it, so what lies between two draws of noise is as loud as they are.  With a ``share`` of
    0 and of 1 the very arrays.
    """
    if share in (0, 1):
        return high if share else low
    a, b = low.astype(np.float64), high.astype(np.float64)
    lengths = np.linalg.norm(a, axis=axis, keepdims=True) * np.linalg.norm(b, axis=axis, keepdims=True)
    cosine = (a * b).sum(axis=axis, keepdims=True) / np.where(lengths > 0, lengths, 1)
    angle = np.arccos(np.clip(cosine, -1, 1))
    parallel = np.sin(angle) < 1e-6  # nearer, rounding decides
    sine = np.where(parallel, 1, np.sin(angle))
    mine = np.where(parallel, 1 - share, np.sin((1 - share) * angle) / sine)
    theirs = np.where(parallel, share, np.sin(share * angle) / sine)
    return np.asarray(a * mine + b * theirs, np.float32)
