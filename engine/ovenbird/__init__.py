"""ovenbird: Stable Diffusion without a GPU.

from ovenbird import Pipeline, Request

pipeline = Pipeline.open("nestling")
result = pipeline.generate(Request(prompt="a red house in the snow", seed=7))
pipeline.save(result.pictures[0], "house.png")
"""

from ovenbird.bundle import Bundle
from ovenbird.errors import (
    Cancelled,
    MissingExtraError,
    ModelError,
    NumericError,
    OvenbirdError,
    RequestError,
    ResourceError,
)
from ovenbird.pipeline import Pipeline
from ovenbird.request import Request
from ovenbird.result import Picture, Result, Step
from ovenbird.timing import TimingReport

__version__ = "0.1.0"

__all__ = [
    "Bundle",
    "Cancelled",
    "MissingExtraError",
    "ModelError",
    "NumericError",
    "OvenbirdError",
    "Picture",
    "Pipeline",
    "Request",
    "RequestError",
    "ResourceError",
    "Result",
    "Step",
    "TimingReport",
    "__version__",
]
