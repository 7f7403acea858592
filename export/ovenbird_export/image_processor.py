"""The image processor: how a picture is made ready for the safety checker."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from ovenbird.bundle import read_json
from ovenbird.errors import ModelError

FILE = "preprocessor_config.json"
SETTINGS = (
    "crop_size",
    "do_center_crop",
    "do_convert_rgb",
    "do_normalize",
    "do_rescale",
    "do_resize",
    "image_mean",
    "image_std",
    "resample",
    "rescale_factor",
    "size",
)
IGNORED = ("_valid_processor_keys", "feature_extractor_type", "image_processor_type", "processor_class")
"""Keys that name what it is already known to be."""


def write_image_processor(source: Path, target: Path) -> None:
    """Rebuild the image processor in ``source`` with transformers, and save it with its sizes spelled out.

    Raises ``ModelError`` for settings that are unknown or impossible.
    """
    from transformers import CLIPImageProcessor

    path = source / FILE
    settings = read_json(path)
    for key in settings:
        if key not in SETTINGS and key not in IGNORED:
            raise ModelError(f"{path}: {key!r} is not known, so its effect would be lost")
    make: Any = CLIPImageProcessor
    try:
        processor = make(**{key: settings[key] for key in SETTINGS if key in settings})
    except Exception as error:  # the settings came from outside; anything may be wrong with them
        raise ModelError(f"{path}: no CLIPImageProcessor has these settings: {error}") from error
    processor.save_pretrained(str(target))
