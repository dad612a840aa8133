"""Florence-2: small for what it sees; its task token sets how much it says."""

from PIL import Image
from transformers import Florence2ForConditionalGeneration, Florence2Processor

from spark_ray.core.errors import unknown_choice
from spark_ray.models.captioning import CaptionOptions, captioners
from spark_ray.models.frame_captioner import FrameCaptioner
from spark_ray.models.pretrained import Placement, load_model, load_processor
from spark_ray.models.weights import Weights

_CAPTION_TASKS = ("<CAPTION>", "<DETAILED_CAPTION>", "<MORE_DETAILED_CAPTION>")


@captioners.register("florence2")
class Florence2Captioner(FrameCaptioner):
    """The prompt is one of three task tokens: a phrase, a sentence or two, or a paragraph.

    Weights must be in the layout of transformers 5 (`florence-community/…`): those at `microsoft/…`
    need their own remote code, which is never run here.
    """

    default_model = "florence-community/Florence-2-base"
    default_prompt = "<DETAILED_CAPTION>"

    def __init__(self, options: CaptionOptions) -> None:
        super().__init__(options)
        if self.prompt not in _CAPTION_TASKS:
            raise unknown_choice("caption_prompt", self.prompt, _CAPTION_TASKS)

    def load_weights(self, weights: Weights, placement: Placement) -> None:
        self.placement = placement
        self.model = load_model(
            Florence2ForConditionalGeneration, weights, "caption_model", placement
        )
        self.processor = load_processor(Florence2Processor, weights, "caption_model")

    def describe(self, images: list[Image.Image]) -> list[str]:
        # One task for all and a fixed number of image tokens: no row is padded.
        inputs = self.processor(
            images=images, text=[self.prompt] * len(images), return_tensors="pt"
        )
        inputs = inputs.to(self.placement.device, self.placement.dtype)
        tokens = self.generate(self.model, dict(inputs))
        captions: list[str] = self.processor.batch_decode(tokens, skip_special_tokens=True)
        return captions
