"""The folder that a report is written to: what may be replaced there.

Without the figures' library, since training asks what is a report, too.
"""

import os
import re
from pathlib import Path

from etils import epath

from ddag_jax.errors import UserError
from ddag_jax.io.buckets import check_bucket, is_bucket, objects_below
from ddag_jax.io.files import refusal

MARK = '<meta name="generator" content="ddag_jax report">'
"""In the head of each report's page."""
FIGURES_MARK = '<meta name="figures" content="{}">'
"""The same, with the names of the files in `figures`."""

_FOUND = re.compile(FIGURES_MARK.format(r"([\w ]*)"))
_HEAD = 4096  # bytes of a page that hold both of the above


def check_target(folder: epath.PathLike) -> epath.Path:
    """Return the folder to write a report to; called before the evaluation starts.

    Raises:
        UserError: the folder holds files of other origin, is a file, or its parent or bucket does
            not exist.
    """
    target = epath.Path(folder)
    if is_bucket(target):
        check_bucket(target)
    else:
        local = Path(folder)
        parent = local.absolute().parent
        if not parent.is_dir():
            raise UserError(f"--report {target}: its folder does not exist; create it first")
        if why := refusal(parent):
            raise UserError(f"--report {target}: cannot be written ({why}); name another folder")
        if not os.path.lexists(local):
            return target
        if local.is_symlink() or not local.is_dir():
            raise UserError(f"--report {target}: is not a folder; name another one, or remove it")
    foreign = _foreign(target)
    if foreign:
        raise UserError(
            f"--report {target}: holds {foreign}, which no report wrote; name another folder, or"
            " an empty one"
        )
    return target


def is_report(folder: epath.PathLike) -> bool:
    """Return whether a folder is a report, and holds nothing else."""
    return epath.Path(folder).is_dir() and _foreign(epath.Path(folder)) is None


def _foreign(folder: epath.Path) -> str | None:
    """Return the name of a file in a folder that is not part of a report, if there is one."""
    if is_bucket(folder):
        present = sorted(objects_below(folder))
    else:
        local = Path(folder)
        present = sorted(path.relative_to(local).as_posix() for path in local.rglob("*"))
    if not present:
        return None
    try:
        with (folder / "index.html").open("rb") as file:
            head = file.read(_HEAD).decode(errors="replace")
    except (OSError, ValueError):
        head = ""
    found = _FOUND.search(head)
    if MARK not in head or found is None:
        return present[0]
    ours = {"index.html", "figures", *(f"figures/{name}.svg" for name in found[1].split())}
    return next((name for name in present if name not in ours), None)
