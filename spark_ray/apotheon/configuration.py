"""What an Apotheon is made of: the configurations of its three encoders, and of the fusion."""

from typing import Any, ClassVar

from huggingface_hub.dataclasses import strict
from transformers import AutoConfig, PreTrainedConfig
from transformers.configuration_utils import SubConfigSpec


@strict
class ApotheonConfig(PreTrainedConfig):
    """Configuration of an `ApotheonModel`; the defaults are the fusion of `apotheon-base`.

    Args:
        vision_config: a `CLIPVisionConfig`, or its values.
        audio_config: a `WhisperConfig`, of which the encoder's part is used. One window of audio is
            `2 * max_source_positions` mel frames long.
        text_config: a `LlamaConfig`.
        fusion_hidden_size: width of the states that meet in the fusion.
        fusion_layers: blocks of self-attention, attention to the media, and an MLP.
        fusion_heads: attention heads in each.
        fusion_mlp_size: inner width of the fusion's MLPs.
        contrastive_size: width of the embeddings that are compared.
        mel_rate_hz: mel frames in a second of audio; Whisper's own is 100.
        contrastive_temperature: at which the contrastive loss starts; it is learned.
        caption_weight, transcription_weight, contrastive_weight: of the losses in their sum.
    """

    model_type = "apotheon"
    sub_configs_defaults: ClassVar = {
        "vision_config": SubConfigSpec(config_class=AutoConfig, model_type="clip_vision_model"),
        "audio_config": SubConfigSpec(config_class=AutoConfig, model_type="whisper"),
        "text_config": SubConfigSpec(config_class=AutoConfig, model_type="llama"),
    }

    vision_config: Any = None
    audio_config: Any = None
    text_config: Any = None
    fusion_hidden_size: int = 2048
    fusion_layers: int = 6
    fusion_heads: int = 16
    fusion_mlp_size: int = 8192
    contrastive_size: int = 1024
    mel_rate_hz: int = 100
    contrastive_temperature: float = 0.07
    caption_weight: float = 1.0
    transcription_weight: float = 1.0
    contrastive_weight: float = 0.5
    initializer_range: float = 0.02
    tie_word_embeddings: bool = False

    def __post_init__(self, **kwargs: Any) -> None:
        super().__post_init__(**kwargs)
        # `generate` and the heads look for these at the top.
        self.vocab_size = self.text_config.vocab_size
        for name in ("bos_token_id", "eos_token_id", "pad_token_id"):
            if getattr(self, name, None) is None:
                setattr(self, name, getattr(self.text_config, name))

    def validate_architecture(self) -> None:
        super().validate_architecture()
        if self.fusion_hidden_size % self.fusion_heads:
            raise ValueError(
                f"fusion_hidden_size must be a multiple of fusion_heads, not "
                f"{self.fusion_hidden_size} of {self.fusion_heads}"
            )

    @property
    def mel_frames(self) -> int:
        """Mel frames of one window of audio; Whisper halves their number."""
        return 2 * self.audio_config.max_source_positions

    @property
    def tokens_per_frame(self) -> int:
        """Patches of a picture, and CLIP's class token."""
        return 1 + (self.vision_config.image_size // self.vision_config.patch_size) ** 2
