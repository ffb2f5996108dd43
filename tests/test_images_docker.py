"""Stories of images and a real Docker engine: what mrp makes it loads and runs, what it makes mrp takes back."""

from pathlib import Path

import pytest
from support.dockerd import docker_host as docker_host
from support.images import layout_digest, rootfs
from support.kinds import workspace
from support.places import Place

pytestmark = pytest.mark.backend

SHELL = {
    "base": "scratch",
    "layers": [{"deb": ["busybox-static"], "lock": "debs.lock"}, {"links": {"/bin/sh": "busybox"}}],
}

DOCKERFILE = """\
FROM scratch AS tools
COPY busybox /bin/busybox
RUN ["/bin/busybox", "sh", "-c", "/bin/busybox --install -s /bin; echo removed > /removed"]

FROM tools
ENV COLOR=red
RUN echo made > /made; chmod 755 /made; rm /removed
RUN ! wget -T 2 http://10.0.0.1/ && ls /sys/class/net > /nets
COPY . /context
"""


@pytest.fixture(scope="module")
def shell(tmp_path_factory: pytest.TempPathFactory) -> Place:
    """A workspace with a built image that has a shell."""
    place = workspace(tmp_path_factory.mktemp("shell"), {"img": {"kind": "image", **SHELL, "env": {"COLOR": "red"}}})
    for words in (("image", "lock", "//:img"), ("build", "//:img")):
        done = place.mrp(*words)
        if done.returncode == 4:
            pytest.skip(f"Debian's packages cannot be had here: {done.stderr.strip()}")
        assert done.returncode == 0, done.stderr
    return place


def busybox(shell: Place) -> bytes:
    program = rootfs(shell)["usr/bin/busybox"]
    assert isinstance(program, bytes)
    return program


def test_docker_loads_an_image_and_runs_it(shell: Place, docker_host: str) -> None:
    import docker

    done = shell.mrp("image", "load", "//:img", "--tag", "mrp/img", DOCKER_HOST=docker_host)
    assert done.returncode == 0, done.stderr
    client = docker.DockerClient(docker_host)
    try:
        loaded = client.images.get(done.stdout.strip())
        assert loaded.tags == ["mrp/img:latest"]
        assert loaded.id == done.stdout.strip()
        script = (
            "busybox id -u; busybox id -un; pwd; echo $COLOR; echo > /work/a && echo > /tmp/b && stat -c %Y /bin/sh"
        )
        said = client.containers.run(loaded.id, ["/bin/sh", "-c", script], network_mode="none", remove=True)
        assert said.decode().split() == ["1000", "mrp", "/work", "red", "946684800"]
    finally:
        client.close()


def dockerfile(folder: Path, shell: Place, text: str = DOCKERFILE) -> Place:
    targets = {"img": {"kind": "image", "base": {"dockerfile": "docker/Dockerfile", "context": "docker"}}}
    files: dict[str, str | bytes] = {
        "docker/Dockerfile": text,
        "docker/busybox": busybox(shell),
        "docker/z/file": "z\n",
        "docker/z/notes": "private\n",
        "docker/.dockerignore": "z/n*\nDockerfile\n",
    }
    place = workspace(folder, targets, files)
    (place.folder / "docker/busybox").chmod(0o755)
    return place


def test_a_dockerfile_is_built_without_network_and_kept_as_trees(
    tmp_path: Path, shell: Place, docker_host: str
) -> None:
    import docker

    place = dockerfile(tmp_path, shell)
    done = place.mrp("build", "//:img", DOCKER_HOST=docker_host)
    assert done.returncode == 0, done.stderr
    found = rootfs(place)
    assert found["made"] == b"made\n"
    assert found["nets"] == b"lo\n"
    assert found["context/z/file"] == b"z\n"
    assert not {"context/z/notes", "context/Dockerfile"} & set(found)
    assert "removed" not in found
    digest = layout_digest(place)
    # Nothing of it stays in the engine, and nothing of the engine is needed again.
    client = docker.DockerClient(docker_host)
    try:
        assert not [tag for one in client.images.list() for tag in one.tags if "img" in tag and "mrp/" not in tag]
    finally:
        client.close()
    place.edit("docker/z/file", "z", "y")
    place.edit("docker/z/file", "y", "z")
    assert place.mrp("build", "//:img", DOCKER_HOST="unix:///nonexistent").returncode == 0
    assert place.executed() == []
    assert layout_digest(place) == digest


def test_a_dockerfile_that_fails_fails_the_build_and_a_missing_engine_does_not(
    tmp_path: Path, shell: Place, docker_host: str
) -> None:
    place = dockerfile(tmp_path, shell, DOCKERFILE + "RUN echo about to fail; exit 3\n")
    done = place.mrp("build", "//:img", DOCKER_HOST=docker_host)
    assert done.returncode == 1, done.stderr
    assert "`RUN echo about to fail; exit 3` failed" in done.stderr
    absent = place.mrp("build", "//:img", DOCKER_HOST="unix:///nonexistent/docker.sock")
    assert absent.returncode == 4
    assert "no Docker engine answers" in absent.stderr
    assert "DOCKER_HOST" in absent.stderr
