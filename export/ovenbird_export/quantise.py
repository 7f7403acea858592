"""Eight-bit arithmetic: NNCF measures ranges while OpenVINO runs the graph, and rounds to them.

One QDQ graph serves both runtimes.  NNCF reads the ONNX through OpenVINO, which maps the weights and reduces what is
measured while it runs: for SD 1.5 that takes 9.5 GB, where NNCF's own ONNX backend takes 17 and more, and cannot
smooth more than 2 GiB of weights.  ``qdq`` brings what was found back into the ONNX graph.
"""

from __future__ import annotations

import io
import os
from collections.abc import Sequence
from contextlib import redirect_stdout
from pathlib import Path
from typing import Any

import onnx

from ovenbird.errors import NumericError
from ovenbird_export.qdq import transfer
from ovenbird_export.recipes import Arrays


def quantise(source: Path, samples: Sequence[Arrays]) -> onnx.ModelProto:
    """The graph in file ``source`` with weights and activations in eight bits; ``samples`` are inputs to measure on.

    Raises ``NumericError`` when it cannot be done.
    """
    found = onnx.load(source, load_external_data=False)
    transfer(in_openvino(source, samples), found.graph, source.parent)
    return found


def in_openvino(source: Path, samples: Sequence[Arrays]) -> Any:
    """The same as an ``openvino.Model``.

    Transformer-aware: SmoothQuant (Xiao et al., 2022) moves the outliers of activations into the weights, and fast
    bias correction (Nagel et al., 2019) takes back the mean error of every layer.  Raises ``NumericError`` when NNCF
    cannot do it.
    """
    os.environ.setdefault("NNCF_CI", "1")  # it would report its use to a server
    import nncf
    import openvino as ov
    from openvino.passes import ConstantFolding, Manager

    nncf.set_log_level(40)
    model = ov.Core().read_model(source)
    folding = Manager()
    folding.register_pass(ConstantFolding())  # a bias is looked for as a constant, not as one that is reshaped
    folding.run_passes(model)
    try:
        with redirect_stdout(io.StringIO()):  # it draws bars on stdout, which is for results
            return nncf.quantize(
                model,
                nncf.Dataset(list(samples)),
                preset=nncf.QuantizationPreset.MIXED,
                model_type=nncf.ModelType.TRANSFORMER,
                subset_size=len(samples),
            )
    except Exception as error:  # those of NNCF and of OpenVINO share no base
        raise NumericError(f"{source.parent.name}: NNCF cannot quantise it: {error}") from error
