"""Which failures end a run at once, in one sentence."""

import errno
import os
import pickle

import pytest
from ray.train.v2.api.exceptions import ControllerError

from spark_ray.core.errors import ConfigError, StorageError
from spark_ray.training.failures import FailForGood, known_error


def test_a_full_disk_ends_the_run_wherever_ray_met_it():
    full = pickle.loads(pickle.dumps(OSError(errno.ENOSPC, "No space left on device")))
    with pytest.raises(StorageError, match=r"a disk is full .*run the same command again"):
        FailForGood().after_exception(None, {0: ValueError("lost"), 1: full})
    known = known_error(ControllerError(full))
    assert isinstance(known, StorageError)
    assert "\n" not in str(known)


def test_an_error_of_ours_is_found_below_rays_and_no_other():
    ours = ConfigError("frozen: nothing is left to learn")
    assert known_error(ControllerError(ours)) is ours
    assert known_error(ControllerError(OSError(errno.EIO, os.strerror(errno.EIO)))) is None
    FailForGood().after_exception(None, {0: RuntimeError("a worker is gone")})
