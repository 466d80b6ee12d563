"""Let files belong to a user or a group without a name: in a container, on a shared file system.

etils looks up both names in every `stat`, also for tensorflow-datasets and orbax, and fails where
there is none. Nobody reads them. Importing this file is enough.
"""

import os
import stat

from etils.epath import backend, stat_utils
from etils.epath.typing import PathLike

_with_names = backend.os_backend.stat


def _stat(path: PathLike) -> stat_utils.StatResult:
    try:
        return _with_names(path)
    except KeyError:  # of `pwd` or `grp`
        found = os.stat(path)
        return stat_utils.StatResult(
            is_directory=stat.S_ISDIR(found.st_mode),
            length=found.st_size,
            mtime=int(found.st_mtime),
            owner=None,
            group=None,
            mode=found.st_mode,
        )


backend.os_backend.stat = _stat
