"""Names of OpenVINO's devices: ``cpu``, ``gpu.1``, ``npu``, and those that hand the work on, as ``auto:gpu,cpu``."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from ovenbird.errors import RequestError

VIRTUAL = ("AUTO", "HETERO", "MULTI")


@dataclass(frozen=True)
class Device:
    """What a model is compiled for."""

    name: str
    """As OpenVINO has it, in capitals."""
    members: tuple[str, ...]
    """The devices that may run it."""

    @property
    def is_virtual(self) -> bool:
        """Whether it hands the work on to its members."""
        return self.name.startswith(VIRTUAL)


def parse(text: str, known: Sequence[str]) -> Device:
    """A device by its name in any case, where OpenVINO lists ``known`` ones.  Raises ``RequestError``."""
    name = text.upper()
    kind, colon, listed = name.partition(":")
    named = [name]
    if kind in VIRTUAL and colon:
        named = listed.split(",")
    elif kind == "AUTO":
        named = []
    left_out = {each[1:] for each in named if each.startswith("-") and kind == "AUTO"}
    members = [each for each in named if each[1:] not in left_out]
    for each in [*members, *left_out]:
        if not _is_there(each, known):
            raise RequestError(
                f"device: openvino has no {each.lower()!r:.40} here",
                hint=f"it offers {', '.join(known).lower()} and auto; auto:, hetero: and multi: take a list of them",
            )
    members = members or [each for each in known if each not in left_out]
    if not members:
        raise RequestError(f"device: {text!r:.40} leaves none to run on", hint=f"here is {', '.join(known).lower()}")
    return Device(name, tuple(members))


def _is_there(name: str, known: Sequence[str]) -> bool:
    # The only one of its kind is listed without a number, and the first of several may be named without.
    return name in {*known, *(each.split(".")[0] for each in known), *(f"{each}.0" for each in known if each != "CPU")}
