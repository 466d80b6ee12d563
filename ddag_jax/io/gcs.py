"""The connection to buckets: gcsfs, with faults in one form. Imported by fsspec when it is needed.

The one file that imports gcsfs, the extra `gcs`.
"""

import asyncio
import logging
import os
import re
from collections.abc import Sequence
from typing import Any

from fsspec import asyn

from ddag_jax.errors import UserError
from ddag_jax.io.buckets import BucketError

if os.environ.get("STORAGE_EMULATOR_HOST"):
    # gcsfs asks by gRPC what kind of bucket it is; emulators speak HTTP only.
    os.environ.setdefault("GCSFS_EXPERIMENTAL_ZB_HNS_SUPPORT", "false")

try:
    import aiohttp
    import gcsfs
    from gcsfs.retry import ChecksumError, HttpError
    from google.auth.exceptions import GoogleAuthError
except ModuleNotFoundError as error:
    raise UserError(f"paths in buckets (gs://) need gcsfs: pip install gcsfs ({error})") from None

# It warns at each call where a bucket's kind cannot be found out, without credentials for example,
# and prints the traceback of what it raises.
_logger = logging.getLogger("gcsfs")
if _logger.level == logging.NOTSET:
    _logger.setLevel(logging.CRITICAL)

_FAULTS = (
    HttpError,
    GoogleAuthError,
    ChecksumError,
    aiohttp.ClientError,
    asyncio.TimeoutError,
    ValueError,  # gcsfs: a request that the server finds invalid
    OSError,
)


class FileSystem(gcsfs.GCSFileSystem):
    """All buckets that this process's credentials give access to.

    A request that fails is repeated by gcsfs, for half a minute in all. What then raises is a
    `BucketError`, apart from FileNotFoundError and FileExistsError.
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        # Nothing that a listing said is kept: other processes write there too.
        super().__init__(*args, **({"use_listings_cache": False} | kwargs))

    async def _call(self, method: str, path: str, *args: Any, **kwargs: Any) -> Any:
        try:
            return await super()._call(method, path, *args, **kwargs)
        except FileExistsError:
            raise
        except FileNotFoundError:
            raise FileNotFoundError(f"gs://{'/'.join(args)}: there is no such object") from None
        except _FAULTS as error:
            raise _described(error, path, args) from error

    call = asyn.sync_wrapper(_call)

    async def _get_file(self, rpath: str, lpath: str, **kwargs: Any) -> None:
        try:
            await super()._get_file(rpath, lpath, **kwargs)
        except (FileNotFoundError, FileExistsError):
            raise
        except _FAULTS as error:
            raise _described(error, "", self.split_path(rpath)[:2]) from error

    async def _isdir(self, path: str) -> bool:
        """Return whether it is a folder; gcsfs also says no where it cannot find out."""
        try:
            return bool((await self._info(path))["type"] == "directory")
        except FileNotFoundError:
            return False

    async def _mkdir(self, path: str, *args: Any, **kwargs: Any) -> None:
        """Do nothing: a folder is there as soon as something is in it, and gcsfs would create a
        bucket that is not there."""

    mkdir = asyn.sync_wrapper(_mkdir)

    async def _makedirs(self, path: str, exist_ok: bool = False) -> None:
        """Do nothing, as `_mkdir`."""

    makedirs = asyn.sync_wrapper(_makedirs)

    async def _bucket(self, name: str) -> dict[str, Any]:
        """Return what Cloud Storage says of a bucket."""
        found: dict[str, Any] = await self._call("GET", "b/{}", name, json_out=True)
        return found

    bucket = asyn.sync_wrapper(_bucket)

    async def _write_if(self, path: str, content: bytes, generation: int) -> int:
        bucket, key, _ = self.split_path(path)
        stored = await self._call(
            "POST",
            f"{self._location}/upload/storage/v1/b/{bucket}/o",
            uploadType="media",
            name=key,
            ifGenerationMatch=str(generation),
            data=content,
            headers={"Content-Type": "application/octet-stream"},
            json_out=True,
        )
        return int(stored["generation"])

    write_if = asyn.sync_wrapper(_write_if)

    async def _remove_if(self, path: str, generation: int) -> None:
        bucket, key, _ = self.split_path(path)
        await self._call("DELETE", "b/{}/o/{}", bucket, key, ifGenerationMatch=str(generation))

    remove_if = asyn.sync_wrapper(_remove_if)


def _described(error: BaseException, path: str, names: Sequence[str]) -> BucketError:
    """Return the error in one line that names the bucket and, where it is known, the object."""
    if isinstance(error, BucketError):
        return error
    text = " ".join(str(error).split()).strip(" ,") or type(error).__name__
    if isinstance(error, HttpError):
        text = f"Cloud Storage answered {text}"
    uploaded = re.search("/b/([^/]+)/o", path)
    where = "/".join(names) or (uploaded[1] if uploaded else "")
    return BucketError(f"gs://{where}: {text}")
