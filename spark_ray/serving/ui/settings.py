"""How the front end is configured: the `args` of its application in `serve_configs/*.yaml`."""

from typing import Annotated

from pydantic import Field

from spark_ray.core.config import JobConfig
from spark_ray.core.mistakes import written_as


class UiSettings(JobConfig):
    """The front end."""

    api_url: Annotated[
        str,
        written_as(r"https?://[^/?#@]+", "http:// or https:// with a host, and no path after it"),
    ] = Field(
        "http://127.0.0.1:8000",
        description="the server's address, as the node of the front end reaches it",
    )
    num_cpus: float = Field(0.1, ge=0, description="that Ray sets aside")
    session_lifetime_s: float = Field(
        8 * 3600.0, gt=0, description="a visitor who does nothing for so long is logged out"
    )
    max_sessions: int = Field(1000, gt=0, description="visitors at a time")
    max_upload_bytes: int = Field(256 << 20, gt=0, description="largest file to drop on a page")
    request_timeout_s: float = Field(150.0, gt=0, description="longest wait for the server")
    secure_cookies: bool = Field(
        False, description="cookies over https only; turn it on behind a proxy that speaks https"
    )
