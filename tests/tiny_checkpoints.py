"""Checkpoints of real architectures, some 100 kB large and random, made without a network.

They go through the same loaders as the models that they stand for. Their weights are drawn wide, so
that what they say, while it means nothing, differs from picture to picture; at the usual width all
pictures would get one caption, and a test of who gets which caption would prove nothing.
"""

from pathlib import Path

import torch
import whisper
from ctranslate2.converters import TransformersConverter
from tokenizers.pre_tokenizers import ByteLevel
from transformers import (
    BartConfig,
    BartTokenizer,
    BertTokenizer,
    Blip2Config,
    Blip2ForConditionalGeneration,
    Blip2Processor,
    BlipConfig,
    BlipForConditionalGeneration,
    BlipImageProcessorPil,
    BlipProcessor,
    CLIPImageProcessorPil,
    Florence2Config,
    Florence2ForConditionalGeneration,
    Florence2Processor,
    GPT2Tokenizer,
    OPTConfig,
    PreTrainedModel,
    Qwen2Tokenizer,
    Qwen2VLConfig,
    Qwen2VLForConditionalGeneration,
    Qwen2VLImageProcessorPil,
    WhisperConfig,
    WhisperFeatureExtractor,
    WhisperForConditionalGeneration,
    WhisperTokenizer,
)

WORDS = [
    f"{adjective}{noun}"
    for adjective in ("red", "blue", "small", "round", "slow", "wet", "loud", "kind")
    for noun in ("dog", "cat", "ball", "house", "tree", "boat", "cloud", "lamp")
]


def blip(folder: Path) -> Path:
    tokens = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "[DEC]", *WORDS, *"abcdefghij"]
    ids = {token: number for number, token in enumerate(tokens)}
    tokenizer = BertTokenizer(vocab=ids, extra_special_tokens={"dec_token": "[DEC]"})
    layer = {"hidden_size": 32, "intermediate_size": 32, "num_attention_heads": 2}
    config = BlipConfig(
        text_config={
            **layer,
            "num_hidden_layers": 2,
            "vocab_size": len(tokens),
            "max_position_embeddings": 64,
            "bos_token_id": ids["[DEC]"],
            "sep_token_id": ids["[SEP]"],
            "eos_token_id": ids["[SEP]"],
            "initializer_range": 0.3,
        },
        vision_config={
            **layer,
            "num_hidden_layers": 2,
            "image_size": 32,
            "patch_size": 8,
            "initializer_range": 0.3,
        },
        projection_dim=32,
        image_text_hidden_size=32,
    )
    BlipProcessor(_squares(BlipImageProcessorPil), tokenizer).save_pretrained(folder)
    return _save(BlipForConditionalGeneration, config, folder)


def blip2(folder: Path) -> Path:
    ids = _byte_vocabulary("</s>", "<pad>", "<image>")
    tokenizer = GPT2Tokenizer(
        vocab=ids, bos_token="</s>", eos_token="</s>", unk_token="</s>", pad_token="<pad>"
    )
    layer = {"hidden_size": 32, "intermediate_size": 32, "num_attention_heads": 2}
    config = Blip2Config(
        text_config=OPTConfig(
            vocab_size=len(ids),
            hidden_size=32,
            ffn_dim=32,
            num_attention_heads=2,
            num_hidden_layers=2,
            word_embed_proj_dim=32,
            max_position_embeddings=128,
            bos_token_id=ids["</s>"],
            eos_token_id=ids["</s>"],
            pad_token_id=ids["<pad>"],
            init_std=0.3,
        ).to_dict(),
        vision_config={
            **layer,
            "num_hidden_layers": 2,
            "image_size": 32,
            "patch_size": 8,
            "initializer_range": 0.3,
        },
        qformer_config={**layer, "num_hidden_layers": 2, "vocab_size": 10},
        num_query_tokens=4,
        image_token_index=ids["<image>"],
        initializer_range=0.3,
    )
    processor = Blip2Processor(_squares(BlipImageProcessorPil), tokenizer, num_query_tokens=4)
    processor.save_pretrained(folder)
    return _save(Blip2ForConditionalGeneration, config, folder)


def florence2(folder: Path) -> Path:
    ids = _byte_vocabulary("<s>", "<pad>", "</s>", "<unk>", "<mask>", "<image>")
    tokenizer = BartTokenizer(vocab=ids, extra_special_tokens={"image_token": "<image>"})
    image_processor = _squares(CLIPImageProcessorPil, do_center_crop=False)
    # A 2×2 grid of patches and their mean.
    image_processor.image_seq_length = 5
    config = Florence2Config(
        text_config=BartConfig(
            vocab_size=len(ids),
            d_model=32,
            encoder_layers=2,
            decoder_layers=2,
            encoder_attention_heads=2,
            decoder_attention_heads=2,
            encoder_ffn_dim=32,
            decoder_ffn_dim=32,
            max_position_embeddings=256,
            bos_token_id=ids["<s>"],
            pad_token_id=ids["<pad>"],
            eos_token_id=ids["</s>"],
            decoder_start_token_id=ids["</s>"],
            forced_eos_token_id=ids["</s>"],
            init_std=1.0,
        ).to_dict(),
        vision_config={
            "depths": (1, 1),
            "patch_size": (7, 3),
            "patch_stride": (4, 4),
            "patch_padding": (3, 1),
            "patch_prenorm": (False, True),
            "embed_dim": (16, 32),
            "num_heads": (2, 2),
            "num_groups": (2, 2),
            "window_size": 4,
            "projection_dim": 32,
            "initializer_range": 1.0,
        },
        image_token_id=ids["<image>"],
    )
    Florence2Processor(image_processor, tokenizer).save_pretrained(folder)
    return _save(Florence2ForConditionalGeneration, config, folder)


def qwen2_vl(folder: Path) -> Path:
    special = (
        "<|endoftext|>",
        "<|im_start|>",
        "<|im_end|>",
        "<|vision_start|>",
        "<|vision_end|>",
        "<|image_pad|>",
        "<|video_pad|>",
    )
    ids = _byte_vocabulary(*special)
    tokenizer = Qwen2Tokenizer(vocab=ids, merges=[], extra_special_tokens=list(special[1:]))
    config = Qwen2VLConfig(
        text_config={
            "vocab_size": len(ids),
            "hidden_size": 32,
            "intermediate_size": 32,
            "num_hidden_layers": 2,
            "num_attention_heads": 2,
            "num_key_value_heads": 2,
            "max_position_embeddings": 1024,
            "rope_parameters": {"rope_type": "default", "mrope_section": [2, 3, 3]},
            "bos_token_id": ids["<|endoftext|>"],
            "eos_token_id": ids["<|im_end|>"],
            "pad_token_id": ids["<|endoftext|>"],
            "initializer_range": 0.3,
        },
        vision_config={
            "depth": 2,
            "embed_dim": 32,
            "hidden_size": 32,
            "num_heads": 2,
            "patch_size": 4,
            "initializer_range": 0.3,
        },
        image_token_id=ids["<|image_pad|>"],
        video_token_id=ids["<|video_pad|>"],
        vision_start_token_id=ids["<|vision_start|>"],
        vision_end_token_id=ids["<|vision_end|>"],
    )
    tokenizer.save_pretrained(folder)
    Qwen2VLImageProcessorPil(
        patch_size=4, size={"shortest_edge": 8 * 8, "longest_edge": 32 * 32}
    ).save_pretrained(folder)
    return _save(Qwen2VLForConditionalGeneration, config, folder)


def openai_whisper(file: Path) -> Path:
    """A multilingual `.pt` in the layout of the published ones."""
    dims = whisper.model.ModelDimensions(
        n_mels=80,
        n_audio_ctx=1500,
        n_audio_state=16,
        n_audio_head=2,
        n_audio_layer=1,
        n_vocab=51865,
        n_text_ctx=16,
        n_text_state=16,
        n_text_head=2,
        n_text_layer=2,
    )
    model = whisper.model.Whisper(dims)
    torch.manual_seed(2)
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if weight.dim() > 1:
                gain = 8 if "cross_attn" in name else 2
                weight.normal_(std=gain * weight.shape[-1] ** -0.5)
        # A random network puts timestamps everywhere, and Whisper then crawls through the sound.
        model.decoder.token_embedding.weight[-1501:] = 0
    torch.save({"dims": vars(dims), "model_state_dict": model.state_dict()}, file)
    return file


def hf_whisper(folder: Path) -> Path:
    """An English Whisper in `transformers`, which CTranslate2's converter reads."""
    special = [
        "<|endoftext|>",
        "<|startoftranscript|>",
        "<|translate|>",
        "<|transcribe|>",
        "<|startoflm|>",
        "<|startofprev|>",
        "<|nospeech|>",
        "<|notimestamps|>",
        *(f"<|{step * 0.02:.2f}|>" for step in range(1501)),
    ]
    text = [*sorted(ByteLevel.alphabet()), *(f"Ġ{word}" for word in WORDS)]
    ids = {token: number for number, token in enumerate([*text, *special])}
    tokenizer = WhisperTokenizer(
        vocab={token: ids[token] for token in [*text, special[0]]},
        merges=[],
        extra_special_tokens=special[1:],
    )
    tokenizer.save_pretrained(folder)
    WhisperFeatureExtractor().save_pretrained(folder)
    config = WhisperConfig(
        vocab_size=len(ids),
        d_model=16,
        encoder_layers=1,
        decoder_layers=2,
        encoder_attention_heads=2,
        decoder_attention_heads=2,
        encoder_ffn_dim=16,
        decoder_ffn_dim=16,
        bos_token_id=ids["<|endoftext|>"],
        eos_token_id=ids["<|endoftext|>"],
        pad_token_id=ids["<|endoftext|>"],
        decoder_start_token_id=ids["<|startoftranscript|>"],
        suppress_tokens=[],
        begin_suppress_tokens=[],
        init_std=1.0,
    )
    return _save(WhisperForConditionalGeneration, config, folder)


def ctranslate2_whisper(folder: Path, source: Path) -> Path:
    """`hf_whisper` through the real converter."""
    converter = TransformersConverter(
        str(source), copy_files=["tokenizer.json", "preprocessor_config.json"]
    )
    converter.convert(str(folder), force=True)
    return folder


def _byte_vocabulary(*special: str) -> dict[str, int]:
    """All bytes, so that every text can be encoded, and words for the model to say."""
    tokens = [*special, *sorted(ByteLevel.alphabet()), *(f"Ġ{word}" for word in WORDS)]
    return {token: number for number, token in enumerate(tokens)}


def _squares(image_processor: type, **settings: object) -> object:
    return image_processor(size={"height": 32, "width": 32}, **settings)


def _save(model_class: type[PreTrainedModel], config: object, folder: Path) -> Path:
    torch.manual_seed(0)
    model_class(config).save_pretrained(folder)
    return folder
