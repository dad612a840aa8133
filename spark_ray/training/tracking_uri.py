"""Where a run is tracked: an MLflow server or database, or a file of this machine."""

import importlib.metadata
import os

from spark_ray.core.errors import ConfigError
from spark_ray.core.storage import is_remote, local_path
from spark_ray.models.registered import SQLITE

_SCHEMES = ("http", "https", "sqlite", "postgresql", "mysql", "mssql", "databricks", "file")


def check_tracking_uri(uri: str | None) -> str | None:
    """The address itself, for what MLflow can reach; one without a scheme is a folder.

    Raises:
        ConfigError: neither MLflow nor a plugin of it that is installed knows the scheme.
    """
    scheme, separator, _ = (uri or "").partition("://")
    plugins = importlib.metadata.entry_points(group="mlflow.tracking_store").names
    if separator and scheme.partition("+")[0].lower() not in {*_SCHEMES, *plugins}:
        raise ConfigError(
            f"MLflow knows no {scheme}://; give http://host:5000 or https:// of a server, "
            "sqlite:////folder/mlflow.db, postgresql:// or mysql:// of a database"
        )
    return uri


def default_tracking_uri(folder: str) -> str:
    """`MLFLOW_TRACKING_URI` if it is set, else `mlflow.db` in a folder of this machine.

    References like `models:/apotheon@champion` are looked up in the same variable, else in
    `mlflow.db` of the working folder; another folder has to be named in the variable.

    Raises:
        ConfigError: the folder is in a bucket, where SQLite can't write; or the variable holds an
            address that MLflow can't use.
    """
    uri = os.environ.get("MLFLOW_TRACKING_URI")
    try:
        check_tracking_uri(uri)
    except ConfigError as error:
        raise ConfigError(f"MLFLOW_TRACKING_URI: {error}") from error
    if not uri and is_remote(folder):
        raise ConfigError(
            f"tracking_uri: MLflow's SQLite file can't be in {folder}; give the address of an "
            "MLflow server, or of a file like sqlite:////home/me/mlflow.db"
        )
    return uri or f"{SQLITE}{local_path(folder).absolute()}/mlflow.db"
