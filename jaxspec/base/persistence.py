"""The methods `save` and `load` of classes whose file formats live in another package.

A class that is defined below the package `files` inherits `Persistent`. `files` registers how to
write and read it, once, with `register_format`. So specifications and markets can be saved without
importing what knows files. Nothing here opens a file.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, TypeVar

from jaxspec.base.atomic_files import PathLike, as_path, existing_path

if TYPE_CHECKING:
    from pathlib import Path

    from typing_extensions import Self

__all__ = ["Persistent", "register_format"]

T = TypeVar("T")


@dataclasses.dataclass(frozen=True)
class _Format:
    save: Callable[[Any, Path], None]
    load: Callable[[Path, type], Any]


_FORMATS: dict[type, _Format] = {}


def register_format(
    cls: type[T], *, save: Callable[[T, Path], None], load: Callable[[Path, type[T]], T]
) -> None:
    """Set how objects of `cls`, and of its subclasses without a format of their own, are kept.

    A later call for the same class replaces an earlier one.

    Args:
        cls: the class.
        save: called with the object and the path.
        load: called with the path, at which something exists, and the class whose `load` was
            called; it returns an object of that class.

    Raises:
        TypeError: `cls` is not a class.
    """
    if not isinstance(cls, type):
        raise TypeError(f"cls: expected a class, got {cls!r:.80}")
    _FORMATS[cls] = _Format(save, load)


def _format_of(cls: type) -> _Format:
    """Return the format of the nearest class, in the order in which methods are looked up."""
    for base in cls.__mro__:
        if base in _FORMATS:
            return _FORMATS[base]
    raise TypeError(
        f"{cls.__name__}: expected a class with a registered file format, got one without; "
        "import jaxspec.files, which registers those of this package"
    )


class Persistent:
    """Adds `save` and `load`, which use the format that `register_format` was given."""

    __slots__ = ()

    def save(self, path: PathLike) -> None:
        """Write this object to `path`.

        Raises:
            TypeError: `path` is neither a string nor a path; no format is registered.
            ValueError: `path` is an address of a cloud storage, or the object cannot be saved.
        """
        _format_of(type(self)).save(self, as_path(path))

    @classmethod
    def load(cls, path: PathLike) -> Self:
        """Return the object that `save` wrote to `path`.

        Raises:
            FileNotFoundError: there is nothing at `path`.
            TypeError: `path` is neither a string nor a path; no format is registered, or its
                function returned an object of another class.
            ValueError: what is there is not such an object, is damaged, or of another version.
        """
        found = _format_of(cls).load(existing_path(path), cls)
        if not isinstance(found, cls):
            raise TypeError(
                f"{path}: expected a {cls.__name__}, got a {type(found).__name__} from its format"
            )
        return found
