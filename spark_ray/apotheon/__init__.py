"""Apotheon, one multimodal model: configuration, network, losses, processor.

Importing this package makes `AutoConfig`, `AutoModel` and `AutoProcessor` know it.
"""

from transformers import AutoConfig, AutoModel, AutoProcessor

from spark_ray.apotheon.configuration import ApotheonConfig
from spark_ray.apotheon.modeling import ApotheonModel, ApotheonOutput
from spark_ray.apotheon.processing import ApotheonProcessor

AutoConfig.register("apotheon", ApotheonConfig)
AutoModel.register(ApotheonConfig, ApotheonModel)
AutoProcessor.register(ApotheonConfig, ApotheonProcessor)

__all__ = [
    "ApotheonConfig",
    "ApotheonModel",
    "ApotheonOutput",
    "ApotheonProcessor",
]
