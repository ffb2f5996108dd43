"""What the chosen engine or backend cannot run is refused before anything runs, at the field that asks for it."""

import json
from pathlib import Path

import pytest
from support.kinds import policy, workspace
from support.places import Place

ROWS = {"rows.jsonl": json.dumps({"id": "a"}) + "\n"}


def rollout(tmp_path: Path, sandbox: dict[str, object], image: dict[str, object] | None = None) -> Place:
    return workspace(
        tmp_path,
        {
            "rows": {"kind": "dataset", "srcs": ["rows.jsonl"]},
            "os": image or {"kind": "image", "base": "scratch"},
            "box": {"kind": "sandbox", "image": ":os", **sandbox},
            "me": {"kind": "agent", "version": "1", "command": ["true"]},
            "solve": {"kind": "rollout", "over": ":rows", "agent": ":me", "sandbox": ":box"},
        },
        ROWS,
    )


def refused(ws: Place, *flags: str) -> str:
    done = ws.mrp("build", "//:solve", *flags)
    assert done.returncode == 2, done.stderr
    assert not (ws.folder / ".mrp" / "runs").exists(), "something ran"
    return done.stderr


@pytest.mark.parametrize(
    "flags",
    [
        ("--sandbox", "docker"),
        ("--sandbox", "modal"),
        ("--sandbox", "daytona"),
        ("--engine", "modal"),
        ("--engine", "ray", "--address", "h:1"),
    ],
)
def test_the_machines_own_system_is_for_the_local_backend(tmp_path: Path, flags: tuple[str, ...]) -> None:
    said = refused(rollout(tmp_path, {}, {"kind": "image", "base": "host"}), *flags)
    assert "BUILD.yaml" in said
    assert "`base: host` is the machine's own system, which the" in said
    assert "use `base: scratch` with a `deb` layer, or an image by digest" in said


def test_builtin_host_is_for_the_local_backend(tmp_path: Path) -> None:
    ws = workspace(tmp_path, {"made": {"kind": "command", "outs": ["x"], "command": ["touch", "x"]}})
    done = ws.mrp("build", "//:made", "--sandbox", "docker")
    assert done.returncode == 2
    assert (
        "//:made runs in builtin:host, the machine's own system, which the docker backend does not have" in done.stderr
    )
    assert ws.build("//:made")["executed"] == 1


@pytest.mark.parametrize(
    ("fields", "flags", "said"),
    [
        (
            {"limits": {"gpus": {"count": 1}}},
            (),
            "the local backend has no GPUs",
        ),
        ({"limits": {"resources": {"disk": 1}}}, (), "the local backend has no resources by name"),
        ({"limits": {"resources": {"GPU": 1}}}, ("--engine", "ray"), "`GPU` is no resource of one's own"),
        ({"allow": ["true"]}, ("--sandbox", "docker"), "the docker backend cannot limit what is executed"),
        (
            {"limits": {"memory": "64GiB"}},
            ("--sandbox", "daytona"),
            "64GiB of memory is more than the daytona backend gives",
        ),
    ],
)
def test_a_sandbox_that_the_backend_cannot_give(
    tmp_path: Path, fields: dict[str, object], flags: tuple[str, ...], said: str
) -> None:
    found = refused(rollout(tmp_path, fields), *flags)
    assert said in " ".join(found.split())


def test_a_source_of_one_provider(tmp_path: Path) -> None:
    image = {"kind": "image", "base": "modal:///debian_slim"}
    ws = rollout(tmp_path, {}, image)
    policy(ws, images=["//...", "modal:///*"])
    assert "known to modal alone, not to the local backend" in refused(ws)


def test_a_config_chooses_the_place_as_a_flag_does(tmp_path: Path) -> None:
    ws = rollout(tmp_path, {"allow": ["true"]})
    ws.write({"mrp.yaml": "mrp: 1\nname: w\nconfigs: {far: {sandbox: docker}}\n"})
    assert "the docker backend cannot limit what is executed" in refused(ws, "--config", "far")


def test_names_and_combinations_that_do_not_exist(tmp_path: Path) -> None:
    ws = rollout(tmp_path, {})
    assert "there is no engine slurm; use one of local, ray, modal" in refused(ws, "--engine", "slurm")
    assert "there is no engine docker; write --sandbox docker" in refused(ws, "--engine", "docker")
    assert "there is no sandbox backend ray; write --engine ray" in refused(ws, "--sandbox", "ray")
    assert "there is no sandbox backend dokcer; did you mean `docker`?" in refused(ws, "--sandbox", "dokcer")
    assert "isolates with modal's own sandboxes" in refused(ws, "--engine", "modal", "--sandbox", "docker")
    assert "--address is that of a Ray cluster" in refused(ws, "--address", "h:1")


def test_a_plan_is_refused_as_its_build_is(tmp_path: Path) -> None:
    ws = rollout(tmp_path, {}, {"kind": "image", "base": "host"})
    for verb in ("plan", "build"):
        done = ws.mrp(verb, "//:solve", "--sandbox", "docker")
        assert done.returncode == 2
        assert "`base: host` is the machine's own system" in done.stderr


def test_what_ran_elsewhere_may_be_asked_about_here(tmp_path: Path) -> None:
    host: dict[str, object] = {"kind": "image", "base": "host"}
    rollout(tmp_path, {}, host).build("//:solve")
    ws = rollout(tmp_path, {"limits": {"gpus": {"count": 1}}}, host)
    assert "the local backend has no GPUs" in ws.mrp("build", "//:solve").stderr
    assert "gpus" in ws.mrp("why", "//:solve").stdout


def test_what_is_planned_elsewhere_is_refused_where_it_is_run(tmp_path: Path) -> None:
    ws = rollout(tmp_path, {}, {"kind": "image", "base": "host"})
    assert ws.mrp("compile", "//:solve", "-o", str(tmp_path / "out")).returncode == 0
    done = ws.mrp("run", str(tmp_path / "out"), "--sandbox", "docker")
    assert done.returncode == 2
    assert "//:os in the plan" in done.stderr


def test_a_service_that_is_not_there_is_said_once_and_costs_no_trial(tmp_path: Path) -> None:
    ws = rollout(tmp_path, {})
    host = f"unix://{tmp_path}/no-such.sock"
    said = f"cannot be reached at {host} (No such file or directory); start it, or set DOCKER_HOST"
    for words in (["build", "//:solve", "--sandbox", "docker"], ["doctor", "--self-check", "docker"]):
        done = ws.mrp(*words, DOCKER_HOST=host)
        assert done.returncode == 4
        assert done.stderr.count(said) == 1
        assert "Traceback" not in done.stderr + done.stdout
    assert not [action for action in ws.executed() if action[0] == "trial"]
