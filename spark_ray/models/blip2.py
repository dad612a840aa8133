"""BLIP-2: a frozen image encoder that speaks to a language model (OPT or T5) through 32 queries."""

from PIL import Image
from transformers import Blip2ForConditionalGeneration, Blip2Processor

from spark_ray.core.errors import ModelError
from spark_ray.models.captioning import captioners
from spark_ray.models.frame_captioner import FrameCaptioner
from spark_ray.models.pretrained import Placement, load_model, load_processor
from spark_ray.models.weights import Weights


@captioners.register("blip2")
class Blip2Captioner(FrameCaptioner):
    """A prompt is a question, "Question: what is happening? Answer:", and is not in the caption.

    The default has 3.7 G parameters: 8 GB of GPU memory in float16, 15 GB to download.
    """

    default_model = "Salesforce/blip2-opt-2.7b"

    def load_weights(self, weights: Weights, placement: Placement) -> None:
        self.placement = placement
        self.model = load_model(Blip2ForConditionalGeneration, weights, "caption_model", placement)
        self.processor = load_processor(Blip2Processor, weights, "caption_model")
        # Files from before transformers 4.46 lack these two; without them the image is not seen.
        if self.processor.num_query_tokens is None or self.model.config.image_token_id is None:
            raise ModelError(
                f"caption_model: {weights.name} does not say num_query_tokens and "
                "image_token_index; take a newer revision, or save it again with transformers 5"
            )

    def describe(self, images: list[Image.Image]) -> list[str]:
        # An empty text still holds the picture's tokens. All rows are equally long: no padding.
        text = [self.prompt or ""] * len(images)
        inputs = self.processor(images=images, text=text, return_tensors="pt")
        inputs = inputs.to(self.placement.device, self.placement.dtype)
        tokens = self.generate(self.model, dict(inputs))
        if not self.model.language_model.config.is_encoder_decoder:
            # OPT repeats what it was given before it answers; T5 does not.
            tokens = tokens[:, inputs["input_ids"].shape[1] :]
        captions: list[str] = self.processor.batch_decode(tokens, skip_special_tokens=True)
        return captions
