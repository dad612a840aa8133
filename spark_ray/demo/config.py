"""The demo's configuration."""

from pydantic import Field

from spark_ray.core.config import JobConfig


class DemoConfig(JobConfig):
    """Draw clips whose truth is known, and take them through the whole loop.

    A dataset is built from them and compared with what was drawn; Apotheon is trained on it from
    nothing, evaluated on clips that it has not seen, captions a folder of new ones, and is asked
    over HTTP. The same command again goes on where it stopped.

    Exit status: 0 done, 1 the dataset is not what was drawn, the server does not say what the
    dataset job said, or something failed, 2 wrong usage.
    """

    folder: str = Field("demo", description="where clips, datasets, model and reports go")
    clips: int = Field(1200, ge=1, description="clips to draw")
    new_clips: int = Field(24, ge=1, description="clips to draw for the trained model to describe")
    seed: int = Field(0, ge=0, description="another seed draws other clips")
    workers: int = Field(2, ge=1, description="processes that draw, and that train")
    train: bool = Field(True, description="also train, evaluate and caption, not only the dataset")
