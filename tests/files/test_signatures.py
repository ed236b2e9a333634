"""Signatures: who signed is found out, and every change of file or signature is."""

import json
import subprocess
import sys

import pytest
from made_files import made_specification

import jaxspec as js
from jaxspec.base import FileError

ed25519 = pytest.importorskip("cryptography.hazmat.primitives.asymmetric.ed25519")
serialization = pytest.importorskip("cryptography.hazmat.primitives.serialization")


def pem_files(folder, name, password=None):
    """Write a new key pair as PEM files, and return their paths."""
    key = ed25519.Ed25519PrivateKey.generate()
    how = serialization.NoEncryption()
    if password is not None:
        how = serialization.BestAvailableEncryption(password)
    private, public = folder / f"{name}.pem", folder / f"{name}.pub.pem"
    form, encoding = serialization.PrivateFormat.PKCS8, serialization.Encoding.PEM
    private.write_bytes(key.private_bytes(encoding, form, how))
    form = serialization.PublicFormat.SubjectPublicKeyInfo
    public.write_bytes(key.public_key().public_bytes(encoding, form))
    return private, public


@pytest.fixture
def signed(tmp_path):
    path = tmp_path / "x.safetensors"
    made_specification(0).save(path)
    keys = {name: pem_files(tmp_path, name) for name in ("ann", "bob")}
    assert js.sign_file(path, keys["bob"][0]) == tmp_path / "x.safetensors.sig"
    return path, {name: public for name, (_, public) in keys.items()}


def test_the_signer_is_named_and_the_file_is_unchanged(signed, tmp_path):
    path, trusted = signed
    assert js.signer_of(path, trusted) == "bob"
    assert js.signer_of(str(path), {"b": trusted["bob"].read_bytes()}) == "b"
    key = serialization.load_pem_public_key(trusted["bob"].read_bytes())
    assert js.signer_of(path, {"c": key}) == "c"
    made_specification(0).save(tmp_path / "again.safetensors")
    assert (tmp_path / "again.safetensors").read_bytes() == path.read_bytes()
    js.Specification.load(path)


def test_signing_twice_gives_the_same_signature(signed, tmp_path):
    path, _ = signed
    first = path.with_name(path.name + ".sig").read_bytes()
    js.sign_file(path, tmp_path / "bob.pem")
    assert path.with_name(path.name + ".sig").read_bytes() == first
    key = serialization.load_pem_private_key((tmp_path / "bob.pem").read_bytes(), None)
    js.sign_file(path, key)
    assert path.with_name(path.name + ".sig").read_bytes() == first


def test_others_and_changes_are_refused(signed):
    path, trusted = signed
    with pytest.raises(FileError, match=r"signature: expected that of one of \['ann'\]"):
        js.signer_of(path, {"ann": trusted["ann"]})
    with pytest.raises(FileError, match="signature: expected"):
        js.signer_of(path, {})
    whole = path.read_bytes()
    for at in (0, 9, len(whole) // 2, len(whole) - 1):
        data = bytearray(whole)
        data[at] ^= 1
        path.write_bytes(data)
        with pytest.raises(FileError, match="somebody else, or of other contents"):
            js.signer_of(path, trusted)
    path.write_bytes(whole + b"\0")
    with pytest.raises(FileError, match="other contents"):
        js.signer_of(path, trusted)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda text: "", "contents: expected JSON"),
        (lambda text: "[" * 3000, "contents: expected JSON of at most 1 levels"),
        (lambda text: "x" * 5000, "expected at most 4096 bytes"),
        (lambda text: "[]", "format: expected a signature of jaxspec"),
        (lambda text: json.dumps({**json.loads(text), "format_version": 2}), "format_version: e"),
        (lambda text: json.dumps({**json.loads(text), "format_version": True}), "format_version"),
        (lambda text: json.dumps({**json.loads(text), "signature": "ab"}), "signature: expected"),
        (lambda text: json.dumps({**json.loads(text), "signature": "x" * 128}), "hexadecimal"),
        (lambda text: json.dumps({**json.loads(text), "signature": "0" * 128}), "somebody else"),
    ],
)
def test_damaged_signatures_are_refused_by_name(signed, change, message):
    path, trusted = signed
    file = path.with_name(path.name + ".sig")
    file.write_text(change(file.read_text()))
    with pytest.raises(FileError, match=message):
        js.signer_of(path, trusted)


def test_files_without_a_signature_and_what_are_no_keys_are_refused(signed, tmp_path):
    path, trusted = signed
    for key in (path, trusted["bob"]):  # not a PEM file; a public key
        with pytest.raises(
            FileError,
            match="pem: expected a PEM private key|safetensors: expected a PEM private key",
        ):
            js.sign_file(path, key)
    rsa = pytest.importorskip("cryptography.hazmat.primitives.asymmetric.x25519")
    other = rsa.X25519PrivateKey.generate().private_bytes(
        serialization.Encoding.PEM,
        serialization.PrivateFormat.PKCS8,
        serialization.NoEncryption(),
    )
    with pytest.raises(FileError, match="private_key: expected an Ed25519 key, got a"):
        js.sign_file(path, other)
    with pytest.raises(TypeError, match="private_key: expected the path of a PEM file"):
        js.sign_file(path, 3)
    with pytest.raises(TypeError, match="trusted: expected a mapping"):
        js.signer_of(path, [trusted["bob"]])
    with pytest.raises(TypeError, match=r"trusted\['b'\]: expected the path"):
        js.signer_of(path, {"b": None})
    with pytest.raises(FileError, match="expected a PEM public key"):
        js.signer_of(path, {"b": tmp_path / "bob.pem"})
    with pytest.raises(FileNotFoundError):
        js.signer_of(tmp_path / "nowhere", trusted)
    with pytest.raises(ValueError, match="path: expected a file or folder of this machine"):
        js.sign_file("gs://bucket/x", tmp_path / "bob.pem")
    path.with_name(path.name + ".sig").unlink()
    with pytest.raises(FileError, match="signature: expected this file beside the signed one"):
        js.signer_of(path, trusted)


def test_encrypted_keys_need_their_password(signed, tmp_path):
    path, _ = signed
    private, public = pem_files(tmp_path, "cat", password=b"secret")
    with pytest.raises(
        FileError, match="pem: expected a PEM private key|safetensors: expected a PEM private key"
    ):
        js.sign_file(path, private)
    js.sign_file(path, private, password=b"secret")
    assert js.signer_of(path, {"cat": public}) == "cat"


def test_without_the_package_the_error_names_the_extra():
    code = (
        "import sys; sys.modules['cryptography'] = None\n"
        "import jaxspec as js\n"
        "for call in (lambda: js.sign_file('x', 'k'), lambda: js.signer_of('x', {})):\n"
        "    try: call()\n"
        "    except ImportError as error: assert 'jaxspec-learnware[sign]' in str(error)\n"
        "    else: raise SystemExit(1)\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
