"""Keeps compiled modules beside the unpacked ones where the user's environment says that Python shall not do so.

PYTHONDONTWRITEBYTECODE, which many container images set, is about the folders that one works in; the build's folder is jmp's
own, and without compiled modules each start would compile them anew, which takes longer than anything else that it does.
"""

import os
import sys
from importlib.machinery import (
    EXTENSION_SUFFIXES,
    SOURCE_SUFFIXES,
    ExtensionFileLoader,
    FileFinder,
    SourceFileLoader,
)
from types import CodeType


class _Keeping(SourceFileLoader):
    def get_code(self, fullname: str) -> "CodeType | None":
        before, sys.dont_write_bytecode = sys.dont_write_bytecode, False
        try:
            return super().get_code(fullname)
        finally:
            sys.dont_write_bytecode = before


def keep_bytecode(packages: str) -> None:
    """From now on, modules that are imported from the folder `packages` are compiled once; all others as ever."""
    finder = FileFinder.path_hook((ExtensionFileLoader, EXTENSION_SUFFIXES), (_Keeping, SOURCE_SUFFIXES))

    def hook(path: str) -> FileFinder:
        if path != packages and not path.startswith(packages + os.sep):
            raise ImportError(path)
        return finder(path)  # type: ignore[return-value]

    sys.path_hooks.insert(0, hook)
    sys.path_importer_cache.pop(packages, None)
