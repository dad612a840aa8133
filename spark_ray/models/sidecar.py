"""Captions that somebody has already written: files beside the videos, or one file for all."""

import logging
from collections.abc import Sequence
from pathlib import PurePosixPath

from spark_ray.core.schema import Caption, Clip
from spark_ray.models.caption_files import (
    TextAt,
    caption_of,
    keys_of,
    parse_json_captions,
    read_captions_file,
)
from spark_ray.models.captioning import CaptionOptions, captioners
from spark_ray.models.sidecar_files import (
    SIDECAR_SUFFIXES,
    is_named_caption,
    read_cues,
    read_text,
    suffix,
)

log = logging.getLogger(__name__)


@captioners.register("sidecar")
class SidecarCaptioner:
    """A video's captions from `captions_file`, or else from a file beside it.

    `film.caption.srt` goes before `film.srt`. A .txt is one caption for the whole video; there are
    several where copies of it, each with a .txt beside it, were left out. A .json
    holds one text, a list of them, or `{"caption": …}`, `{"captions": […]}`, each with `start` and
    `end` in seconds of the source if it belongs to a part. Of .srt, .vtt and timed texts a clip
    gets those that overlap its span, joined; of several untimed texts the first becomes the
    caption, and all are kept.

    Cost: one small read for each clip; `captions_file` is held in memory by every worker.
    """

    uses_accelerator = False

    def __init__(self, options: CaptionOptions) -> None:
        self.captions_file = options.captions_file
        self.by_key: dict[str, list[TextAt]] = {}
        self._folders: dict[str, str] = {}  # in which bare file names were met first
        self._has_warned = False

    def load(self) -> None:
        """Read `captions_file`, if there is one.

        Raises:
            ConfigError: it has an unknown form.
            StorageError: it can't be read.
            SidecarError: no row of it can be used.
        """
        if self.captions_file is not None:
            self.by_key = read_captions_file(self.captions_file)

    def caption(self, clips: Sequence[Clip]) -> dict[str, Caption]:
        """Captions by clip id; a clip about which nothing is written is left out.

        Raises:
            StorageError: a file beside a video can't be read.
            SidecarError: it can't be understood.
        """
        captions = {clip.clip_id: caption_of(self._texts(clip), clip) for clip in clips}
        return {clip_id: caption for clip_id, caption in captions.items() if caption is not None}

    def _texts(self, clip: Clip) -> list[TextAt]:
        for key in keys_of(clip):
            if key in self.by_key:
                self._warn_of_shared(key, clip.source_path)
                return self.by_key[key]
        files = [uri for uri in sorted(clip.sidecars) if suffix(uri) in SIDECAR_SUFFIXES]
        return _read_first(files) if files else []

    def _warn_of_shared(self, key: str, source_path: str) -> None:
        """Warn, once, where a bare file name captions files of several folders."""
        path = PurePosixPath(source_path)
        if self._has_warned or key not in (path.name, path.stem):
            return
        here = source_path.rpartition("/")[0]
        first = self._folders.setdefault(key, here)
        if first != here:
            log.warning(
                "captions_file: %s: %r captions files in %s and in %s alike; where they are not "
                "the same, name their folders too",
                self.captions_file, key, first, here,
            )  # fmt: skip
            self._has_warned = True


def _preference(uri: str) -> tuple[bool, int]:
    """Where a video has several: the one that is named a caption, else by format."""
    return not is_named_caption(uri), SIDECAR_SUFFIXES.index(suffix(uri))


def _read_first(files: list[str]) -> list[TextAt]:
    """The texts of the file that goes first; those beside copies of a video are of equal rank."""
    first = min(files, key=_preference)
    if suffix(first) != ".txt":
        return _read_sidecar(first)
    equal = [uri for uri in files if _preference(uri) == _preference(first)]
    return list(dict.fromkeys(TextAt(read_text(uri).strip()) for uri in equal))


def _read_sidecar(uri: str) -> list[TextAt]:
    if suffix(uri) == ".json":
        return parse_json_captions(read_text(uri), uri)
    return [TextAt(cue.text, cue.start, cue.end) for cue in read_cues(uri)]
