"""Eight-bit arithmetic: NNCF measures ranges while the ONNX graph runs, and writes them into it (QDQ).

Quantising the ONNX once serves both runtimes: the IR made from it has the same quantised operations as the one that
NNCF makes from an IR (126 of them in nestling's U-Net either way, and the same error).
"""

from __future__ import annotations

import io
import os
from collections.abc import Sequence
from contextlib import redirect_stdout
from pathlib import Path

import onnx

from ovenbird.errors import NumericError
from ovenbird_export.recipes import Arrays


def quantise(source: Path, samples: Sequence[Arrays]) -> onnx.ModelProto:
    """The graph in file ``source`` with weights and activations in eight bits; ``samples`` are inputs to measure on.

    Transformer-aware: SmoothQuant (Xiao et al., 2022) moves the outliers of activations into the weights, and fast
    bias correction (Nagel et al., 2019) takes back the mean error of every layer.  Raises ``NumericError`` when NNCF
    cannot do it.
    """
    os.environ.setdefault("NNCF_CI", "1")  # it would report its use to a server
    import nncf
    from nncf.onnx.quantization.backend_parameters import BackendParameters

    nncf.set_log_level(40)
    where = {BackendParameters.EXTERNAL_DATA_DIR: str(source.parent.resolve())}
    try:
        with redirect_stdout(io.StringIO()):  # it draws bars on stdout, which is for results
            quantised: onnx.ModelProto = nncf.quantize(
                onnx.load(source, load_external_data=False),
                nncf.Dataset(list(samples)),
                preset=nncf.QuantizationPreset.MIXED,
                model_type=nncf.ModelType.TRANSFORMER,
                subset_size=len(samples),
                advanced_parameters=nncf.AdvancedQuantizationParameters(backend_params=where),
            )
    except Exception as error:  # those of NNCF and of ONNX Runtime share no base
        raise NumericError(f"{source.parent.name}: NNCF cannot quantise it: {error}") from error
    return quantised
