"""What is told of a picture: everything that made it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, fields, replace
from typing import TYPE_CHECKING, Any

import ovenbird
from ovenbird import images
from ovenbird.presets import WHOLE
from ovenbird.result import Picture

if TYPE_CHECKING:
    from ovenbird import Pipeline


def facts(pipeline: Pipeline, picture: Picture) -> Mapping[str, Any]:
    """Everything that made one picture."""
    shortcuts = replace(pipeline.shortcuts, guidance_interval=picture.request.guidance_interval or WHOLE)
    given = {field.name: getattr(picture.request, field.name) for field in fields(picture.request)}
    given |= {name: images.digest(given[name]) for name in ("image", "mask_image") if given[name]}
    return (
        asdict(shortcuts)
        | given
        | {
            "sampler": pipeline.scheduler(picture.request).label,
            "threads": pipeline.backend.threads,
            "batch_size": pipeline.setting.batch_size,
            "nsfw_content_detected": picture.nsfw_content_detected,
            **(picture.developing._asdict() if picture.developing else {}),
            **surroundings(pipeline),
            "shortcuts": str(shortcuts),
        }
    )


def surroundings(pipeline: Pipeline) -> Mapping[str, Any]:
    """What made the pictures of a run, whatever was asked for."""
    return {
        "model": pipeline.bundle.name,
        "model_key": pipeline.bundle.key,
        "weights": pipeline.bundle.precision,
        "embeddings": pipeline.embeddings.facts(),
        "tokenizer": pipeline.bundle.words_digest,
        "scheduler_config": pipeline.scheduler_overrides,
        "backend": f"{pipeline.backend.name} {pipeline.backend.version}",
        "device": pipeline.backend.device,
        "inference_precision": pipeline.precision,
        "shortcuts": str(pipeline.shortcuts),
        "ovenbird": ovenbird.__version__,
    }
