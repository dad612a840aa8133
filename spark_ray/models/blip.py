"""BLIP: the smallest captioner that writes useful sentences; it runs on a CPU at some frames/s."""

from PIL import Image
from transformers import BlipForConditionalGeneration, BlipProcessor

from spark_ray.models.captioning import captioners
from spark_ray.models.frame_captioner import FrameCaptioner
from spark_ray.models.pretrained import Placement, load_model, load_processor
from spark_ray.models.weights import Weights


@captioners.register("blip")
class BlipCaptioner(FrameCaptioner):
    """A prompt is the beginning of the caption ("a photo of") and stays part of it.

    The default is the large model (1.9 GB), since the base one offers no safetensors on its main
    branch.
    """

    default_model = "Salesforce/blip-image-captioning-large"

    def load_weights(self, weights: Weights, placement: Placement) -> None:
        self.placement = placement
        self.model = load_model(BlipForConditionalGeneration, weights, "caption_model", placement)
        self.processor = load_processor(BlipProcessor, weights, "caption_model")

    def describe(self, images: list[Image.Image]) -> list[str]:
        # One prompt for all and one size for all: no row is padded.
        text = None if self.prompt is None else [self.prompt] * len(images)
        inputs = self.processor(images=images, text=text, return_tensors="pt")
        inputs = inputs.to(self.placement.device, self.placement.dtype)
        tokens = self.generate(self.model, dict(inputs))
        captions: list[str] = self.processor.batch_decode(tokens, skip_special_tokens=True)
        return captions
