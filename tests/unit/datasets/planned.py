"""Records of plans, as a look at files would have found them."""

from spark_ray.core.schema import VideoInfo
from spark_ray.datasets.config import BuildConfig
from spark_ray.datasets.plan import SourceRecord


def config(**chosen: object) -> BuildConfig:
    return BuildConfig.from_values(**{"input": ["in"], "output": "out", **chosen})


def record(location: str = "a.mp4", duration: float = 10.0, **fields: object) -> SourceRecord:
    info = VideoInfo(duration=duration, width=64, height=64, fps=25, codec="h264")
    plain = {"verdict": "video", "info": info, "source_hash": "ab" * 32}
    return SourceRecord(location=location, **{**plain, **fields})
