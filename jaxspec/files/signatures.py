"""Signatures of files: who submitted a specification, by Ed25519.

`sign_file` writes the signature of a file beside it, as `<name>.sig`; `signer_of` says whose
signature that is. The signature lies beside the file and not in it, so that a signed file is the
same bytes as an unsigned one, any kind of file can be signed, and nothing that reads files has to
know of signatures. Keys are PEM files or objects of the package `cryptography` (the extra `sign`),
which is imported on first use. Nothing here decides whom to trust.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from jaxspec.base import FileError, PathLike, as_path, existing_path, reading, write_atomically
from jaxspec.files.bounded_json import json_text, parse_json, require
from jaxspec.files.declared_arrays import MAX_FILE_BYTES
from jaxspec.files.regular_files import read_limited, seems_to_be

__all__ = ["sign_file", "signer_of"]

SIGNATURE_VERSION = 1
SUFFIX = ".sig"
MAX_SIGNATURE_BYTES = 4096  # some 150 are needed
MAX_KEY_BYTES = 1 << 16
# What is signed begins with this, so that a signature for another purpose is none of ours.
CONTEXT = b"jaxspec signature 1\0"


def sign_file(path: PathLike, private_key: Any, *, password: bytes | None = None) -> Path:
    """Write the signature of a file beside it, as `<name>.sig`, and return that path.

    Args:
        path: the file, such as that of a specification.
        private_key: an Ed25519 key: the path of a PEM file, its contents as bytes, or an
            `Ed25519PrivateKey` of the package `cryptography`.
        password: of the PEM file, if it is encrypted.

    Raises:
        ImportError: the package `cryptography` is not installed.
        TypeError: an argument of the wrong type.
        FileNotFoundError: there is nothing at `path`.
        FileError: `path` or the key's file is not a file of its kind.
    """
    kinds, serialization = _cryptography()
    source = existing_path(path)
    key = private_key
    if not isinstance(key, kinds.Ed25519PrivateKey):
        name, data = _pem("private_key", private_key)
        with reading(name):
            try:
                key = serialization.load_pem_private_key(data, password)
            except (ValueError, TypeError) as error:
                raise ValueError(f"expected a PEM private key: {error}") from None
            good = isinstance(key, kinds.Ed25519PrivateKey)
            require(good, f"expected an Ed25519 key, got a {type(key).__name__}")
    signature = key.sign(_signed(source)).hex()
    document = {
        "format": "jaxspec-signature",
        "format_version": SIGNATURE_VERSION,
        "signature": signature,
    }
    target = signature_path(source)
    write_atomically(target, json_text(document).encode())
    return target


def signer_of(path: PathLike, trusted: Mapping[str, Any]) -> str:
    """Return the name under which the signer of a file is trusted.

    Args:
        path: a file that `sign_file` signed.
        trusted: {name: public key}: the path of a PEM file, its contents as bytes, or an
            `Ed25519PublicKey` of the package `cryptography`.

    Raises:
        ImportError: the package `cryptography` is not installed.
        TypeError: an argument of the wrong type.
        FileNotFoundError: there is nothing at `path`.
        FileError: no signature beside the file, one that is damaged or for other contents, or one
            of nobody who is trusted.
    """
    kinds, serialization = _cryptography()
    from cryptography.exceptions import InvalidSignature

    if not isinstance(trusted, Mapping):
        raise TypeError(
            f"trusted: expected a mapping from names to public keys, got a {type(trusted).__name__}"
        )
    source = existing_path(path)
    keys = {
        name: _public_key(f"trusted[{name!r:.80}]", key, kinds, serialization)
        for name, key in trusted.items()
    }
    signature = _signature(signature_path(source))
    signed = _signed(source)
    for name, key in keys.items():
        try:
            key.verify(signature, signed)
        except InvalidSignature:
            continue
        return name
    raise FileError(
        source,
        field="signature",
        expected=f"that of one of {sorted(map(str, keys))!r:.200}",
        got="that of somebody else, or of other contents",
    )


def signature_path(path: Path) -> Path:
    """Return where the signature of a file lies."""
    return path.with_name(path.name + SUFFIX)


def _cryptography() -> tuple[Any, Any]:
    try:
        from cryptography.hazmat.primitives import serialization
        from cryptography.hazmat.primitives.asymmetric import ed25519
    except ImportError as error:
        raise ImportError(
            "signatures need the package cryptography: pip install 'jaxspec-learnware[sign]'"
        ) from error
    return ed25519, serialization


def _signed(source: Path) -> bytes:
    with reading(source):
        require(not source.is_dir(), f"expected a file, got {seems_to_be(source)}")
        return CONTEXT + read_limited(source, MAX_FILE_BYTES)


def _pem(name: str, value: Any) -> tuple[PathLike, bytes]:
    """Return what a key is called in errors, and the contents of its PEM file."""
    if isinstance(value, bytes):
        return name, value
    if not isinstance(value, str | os.PathLike):
        raise TypeError(
            f"{name}: expected the path of a PEM file, its contents as bytes, or an Ed25519 key, "
            f"got a {type(value).__name__}"
        )
    source = existing_path(as_path(value, name=name))
    with reading(source):
        return source, read_limited(source, MAX_KEY_BYTES)


def _public_key(name: str, value: Any, kinds: Any, serialization: Any) -> Any:
    if isinstance(value, kinds.Ed25519PublicKey):
        return value
    source, data = _pem(name, value)
    with reading(source):
        try:
            key = serialization.load_pem_public_key(data)
        except (ValueError, TypeError) as error:
            raise ValueError(f"expected a PEM public key: {error}") from None
        good = isinstance(key, kinds.Ed25519PublicKey)
        require(good, f"expected an Ed25519 key, got a {type(key).__name__}")
    return key


def _signature(path: Path) -> bytes:
    if not os.path.lexists(path):
        raise FileError(path, "signature: expected this file beside the signed one, got none")
    with reading(path):
        document = parse_json("contents", read_limited(path, MAX_SIGNATURE_BYTES), depth=1)
        good = isinstance(document, dict) and document.get("format") == "jaxspec-signature"
        require(good, "format: expected a signature of jaxspec, got something else")
        version = document.get("format_version")
        require(
            version == SIGNATURE_VERSION and type(version) is int,
            f"format_version: expected {SIGNATURE_VERSION}, got {version!r:.80}",
        )
        text = document.get("signature")
        good = isinstance(text, str) and len(text) == 128
        require(good, f"signature: expected 128 hexadecimal digits, got {text!r:.80}")
        try:
            return bytes.fromhex(text)
        except ValueError:
            raise ValueError("signature: expected hexadecimal digits, got other signs") from None
