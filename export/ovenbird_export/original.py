"""One file in the original layout becomes a folder as diffusers saves it."""

from __future__ import annotations

import hashlib
import re
from importlib.metadata import version
from pathlib import Path
from typing import Any

from ovenbird.errors import ModelError, RequestError
from ovenbird.text import byte_pairs
from ovenbird_export import layouts
from ovenbird_export.components import Lazy, components, write_component
from ovenbird_export.layouts import BEGIN, END, UNET, Family
from ovenbird_export.pickled import open_file
from ovenbird_export.publish import write_json
from ovenbird_export.source import read_text
from ovenbird_export.tokenizer import write_byte_pairs
from ovenbird_export.weights import Checkpoint

PREDICTIONS = {"epsilon": "epsilon", "eps": "epsilon", "v_prediction": "v_prediction", "v": "v_prediction"}
"""What files call what the U-Net predicts -> what diffusers calls it."""
MOST_LISTED = 20


def unpack(file: Path, target: Path, *, tokenizer: Path, prediction_type: str | None) -> dict[str, str]:
    """Write the diffusers folder ``target`` from one .safetensors or .ckpt file; what is known of it, for the manifest.

    Weights stay in the precision in which they are stored.  ``tokenizer`` is a folder with ``vocab.json`` and
    ``merges.txt``, for no such file has them.  ``prediction_type`` overrules what the file says.  Raises
    ``RequestError`` where one of the two does not do, ``ModelError`` for a file that is not known or not whole.
    """
    checkpoint = open_file(file)
    family = layouts.detect(file, checkpoint.tensors)
    unused = layouts.unused(file, family, checkpoint.tensors)
    pipeline = _pipeline(file, family, checkpoint.tensors)
    prediction, evidence = _prediction(file, checkpoint, family, pipeline, prediction_type)
    ids = _write_tokenizers(file, tokenizer, target, family)
    for component in components(file, checkpoint.tensors, family, family.sizes[prediction], ids):
        write_component(target / component.name, component)
        checkpoint.release()
    scheduler = layouts.PURE_NOISE if "ztsnr" in checkpoint.tensors else family.scheduler
    (target / "scheduler").mkdir()
    write_json(target / "scheduler" / "scheduler_config.json", {**scheduler, "prediction_type": prediction})
    write_json(target / "model_index.json", _index(family, pipeline, str(scheduler["_class_name"])))
    return _origin(file, checkpoint) | {
        "layout": family.name,
        "prediction_type": f"{prediction}: {evidence}",
        "unused": ", ".join(f"{label} ({count})" for label, count in unused.items()),
    }


def _pipeline(file: Path, family: Family, tensors: Lazy) -> str:
    name = f"{UNET}input_blocks.0.0.weight"
    channels = tensors[name].shape[1] if name in tensors and len(tensors[name].shape) == 4 else 0
    if channels not in family.pipelines:
        what = layouts.CHANNELS.get(channels, "nothing known")
        raise ModelError(f"{file} looks like {what}: {channels} channels go into its U-Net")
    return family.pipelines[channels]


def _prediction(
    file: Path, checkpoint: Checkpoint, family: Family, pipeline: str, asked: str | None
) -> tuple[str, str]:
    """What the U-Net predicts, and how that is known.

    Not by its weights: thresholds for them are in circulation, and those who published them doubt them.  A wrong guess
    gives grey pictures, so where nothing says it, it has to be told.
    """
    if asked not in (None, *PREDICTIONS.values()):
        raise RequestError(f"prediction_type: {asked!r} is neither epsilon nor v_prediction")
    if asked is not None:
        return asked, "asked for"
    settings = file.with_suffix(".yaml")
    evidence = {
        "marked by a tensor v_pred": "v_prediction" if "v_pred" in checkpoint.tensors else None,
        "said in its metadata": PREDICTIONS.get(checkpoint.metadata.get("modelspec.prediction_type", "")),
        f"said in {settings.name}": _parameterization(settings),
        f"usual in {family.name}": family.prediction or ("epsilon" if "Inpaint" in pipeline else None),
    }
    for source, prediction in evidence.items():
        if prediction is not None:
            return prediction, source
    raise RequestError(
        f"prediction_type: {file.name} does not say what its U-Net predicts, and in {family.name} both are common",
        hint="give --prediction-type v_prediction for a model of 768 pixels, epsilon for one of 512",
    )


def _parameterization(settings: Path) -> str | None:
    """What the settings of the training say; by custom they lie beside a file that needs them."""
    if not settings.is_file():
        return None
    text = read_text(settings)
    found = re.search(r"^[ \t]*parameterization:[ \t]*[\"']?(\w+)", text, re.MULTILINE)
    if found is None:
        return "epsilon" if "first_stage_config" in text else None
    if found[1] not in PREDICTIONS:
        raise ModelError(f"{settings}: parameterization is {found[1]!r}; known: {', '.join(PREDICTIONS)}")
    return PREDICTIONS[found[1]]


def _write_tokenizers(file: Path, source: Path, target: Path, family: Family) -> dict[str, int]:
    """Write one for each text encoder; the numbers of the tokens that begin and end a text."""
    try:
        vocabulary, _ = byte_pairs(source)
    except ModelError as error:
        raise RequestError(
            f"tokenizer: {error}", hint="give a folder with vocab.json and merges.txt of CLIP"
        ) from error
    for token in (BEGIN, END, *(encoder.padding for encoder in family.texts)):
        if type(vocabulary.get(token)) is not int:
            raise ModelError(f"{source} has no number for {token!r}")
    for encoder in family.texts:
        folder = target / encoder.tokenizer
        write_byte_pairs(source, folder)
        special = {"bos_token": BEGIN, "eos_token": END, "unk_token": END, "pad_token": encoder.padding}
        settings = {**special, "model_max_length": 77, "tokenizer_class": "CLIPTokenizer"}
        write_json(folder / "tokenizer_config.json", settings)
    return {"bos_token_id": vocabulary[BEGIN], "eos_token_id": vocabulary[END]}


def _index(family: Family, pipeline: str, scheduler: str) -> dict[str, Any]:
    return {
        "_class_name": pipeline,
        "_diffusers_version": version("diffusers"),
        "scheduler": ["diffusers", scheduler],
        "unet": ["diffusers", "UNet2DConditionModel"],
        "vae": ["diffusers", "AutoencoderKL"],
        **{encoder.folder: ["transformers", encoder.kind] for encoder in family.texts},
        **{encoder.tokenizer: ["transformers", "CLIPTokenizer"] for encoder in family.texts},
        **family.extras,
    }


def _origin(file: Path, checkpoint: Checkpoint) -> dict[str, str]:
    with file.open("rb") as opened:
        digest = hashlib.file_digest(opened, "sha256").hexdigest()
    listed, rest = checkpoint.ignored[:MOST_LISTED], len(checkpoint.ignored) - MOST_LISTED
    ignored = ", ".join(listed) + (f" and {rest} more" if rest > 0 else "")
    origin = {"file": file.name, "file_sha256": digest, "format": checkpoint.format}
    return origin | ({"ignored": ignored} if ignored else {})
