"""Recognise what downloads often leave in the place of a file."""


def foreign(content: bytes) -> str | None:
    """Say what a file is and what to do, going by its beginning; None if it may be the file itself.

    >>> foreign(b"<!DOCTYPE html><title>Sign in</title>")
    'a web page, probably of a download that needs a login: download the file anew'
    """
    start = content[:1024].lstrip().lower()
    if start.startswith(b"version https://git-lfs"):
        return "a pointer of Git LFS: fetch the file itself with git lfs pull"
    if start.startswith((b"<!doctype html", b"<html")):
        return "a web page, probably of a download that needs a login: download the file anew"
    return None
