"""Wheels made by the tests, and the folder that pip finds them in, so that stories of pip layers need no network."""

import base64
import hashlib
import io
import zipfile
from pathlib import Path


def make_wheel(name: str, version: str, files: dict[str, bytes], tag: str = "py3-none-any", scripts: str = "") -> bytes:
    """A wheel with these files; `scripts` are lines like `tool = module:function`."""
    info = f"{name}-{version}.dist-info"
    held = {
        **files,
        f"{info}/METADATA": f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n".encode(),
        f"{info}/WHEEL": f"Wheel-Version: 1.0\nGenerator: tests\nRoot-Is-Purelib: true\nTag: {tag}\n".encode(),
    }
    if scripts:
        held[f"{info}/entry_points.txt"] = f"[console_scripts]\n{scripts}\n".encode()
    record = "".join(f"{path},sha256={_hash(data)},{len(data)}\n" for path, data in held.items())
    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w") as archive:
        for path, data in {**held, f"{info}/RECORD": f"{record}{info}/RECORD,,\n".encode()}.items():
            archive.writestr(zipfile.ZipInfo(path, (2000, 1, 1, 0, 0, 0)), data)
    return packed.getvalue()


def put_wheel(folder: Path, name: str, version: str, data: bytes, tag: str = "py3-none-any") -> str:
    """Put a wheel where pip looks for it; gives its line in a requirements file."""
    folder.mkdir(exist_ok=True)
    (folder / f"{name}-{version}-{tag}.whl").write_bytes(data)
    return f"{name}=={version} --hash=sha256:{hashlib.sha256(data).hexdigest()}\n"


def only(folder: Path) -> dict[str, str]:
    """The environment in which pip sees that folder and nothing else."""
    return {"PIP_NO_INDEX": "1", "PIP_FIND_LINKS": str(folder), "PIP_CONFIG_FILE": "/dev/null"}


def _hash(data: bytes) -> str:
    return base64.urlsafe_b64encode(hashlib.sha256(data).digest()).decode().rstrip("=")
