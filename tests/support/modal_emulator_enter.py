"""Run in the namespaces of an emulated sandbox by the machine's own python3: a command of the image, or a file tool.

    enter.py ROOT CWD run COMMAND WORD...      the environment is the command's
    enter.py ROOT CWD tool JSON                one operation of Modal's own file tool

It knows nothing of the tests and imports only the standard library, all of it before the root changes.
"""

import ctypes
import json
import os
import shutil
import signal
import sys
import warnings  # noqa: F401 - os.execvpe imports it, when this Python is out of reach

_KINDS = {
    FileNotFoundError: "NotFound",
    IsADirectoryError: "IsDirectory",
    NotADirectoryError: "NotDirectory",
    PermissionError: "PermissionDenied",
    FileExistsError: "AlreadyExists",
}


def main(root: str, cwd: str, what: str, words: list[str]) -> None:
    # The one who asked for it is the only one who can end it.
    ctypes.CDLL(None).prctl(1, signal.SIGKILL, 0, 0, 0)
    os.chroot(root)
    os.makedirs(cwd, exist_ok=True)
    os.chdir(cwd)
    if what == "tool":
        sys.exit(_tool(json.loads(words[0])))
    try:
        os.execvpe(words[0], words, os.environ)
    except FileNotFoundError:
        sys.exit(127)
    except OSError:
        sys.exit(126)


def _tool(command: dict[str, dict[str, object]]) -> int:
    ((name, told),) = command.items()
    path = str(told["path"])
    try:
        if name == "WriteFile":
            os.makedirs(os.path.dirname(path), exist_ok=True)
            with open(path, "wb") as file:
                shutil.copyfileobj(sys.stdin.buffer, file)
        elif name == "ReadFile":
            with open(path, "rb") as file:
                shutil.copyfileobj(file, sys.stdout.buffer)
        elif name == "ListFiles":
            print(json.dumps([_described(os.path.join(path, entry)) for entry in sorted(os.listdir(path))]))
        elif name == "Stat":
            print(json.dumps(_described(path)))
        elif name == "MakeDirectory":
            os.makedirs(path, exist_ok=bool(told["parents"]))
        elif name == "Remove":
            if not os.path.isdir(path):
                os.remove(path)
            elif told["recursive"]:
                shutil.rmtree(path)
            else:
                os.rmdir(path)
    except OSError as error:
        problem = {"error_kind": _KINDS.get(type(error), "Other"), "message": error.strerror or str(error)}
        print(json.dumps(problem), file=sys.stderr)
        return 1
    return 0


def _described(path: str) -> dict[str, object]:
    found = os.lstat(path)
    return {
        "name": os.path.basename(path),
        "path": path,
        "type": "directory" if os.path.isdir(path) else "file",
        "size": found.st_size,
        "mode": found.st_mode & 0o7777,
        "permissions": oct(found.st_mode & 0o777)[2:],
        "owner": "root",
        "group": "root",
        "modified_time": found.st_mtime,
        "symlink_target": os.readlink(path) if os.path.islink(path) else None,
    }


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], sys.argv[3], sys.argv[4:])
