"""The Tiltfile under a Starlark interpreter, with Tilt's functions recorded under their real signatures.

The signatures are those of Tilt's own published API: a call it does not know, or an argument, cannot pass.
"""

from __future__ import annotations

import inspect
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import starlark
import yaml

from kgents_devstack.__main__ import CONTROLS
from kgents_devstack.ports import OPERATIONS, SERVICES
from kgents_devstack.stack import EVERYTHING

ROOT = Path(__file__).parents[2]
# What stands before each file: Starlark has no `config`, so that its functions come under plain names.
PRELUDE = """
TRIGGER_MODE_MANUAL = 'manual'
config = struct(define_bool=_config_define_bool, define_string=_config_define_string, parse=_config_parse)
"""


class RefusedError(Exception):
    """The Tiltfile called `fail`."""


class Tilt:
    """Records what a Tiltfile asks for.

    Args:
        options: What came after `tilt up --`.
    """

    def __init__(self, options: dict[str, object], context: str = "kind-kgents") -> None:
        self.options = options
        self.context = context
        self.defined: set[str] = set()
        self.calls: list[tuple[str, dict[str, Any]]] = []

    def of(self, name: str) -> list[dict[str, Any]]:
        return [given for called, given in self.calls if called == name]

    def run(self) -> None:
        self._evaluate(ROOT / "Tiltfile")

    def _evaluate(self, path: Path) -> starlark.FrozenModule:
        module = starlark.Module()
        for name, function in self._functions().items():
            module.add_callable(name, function)
        dialect = starlark.Dialect.extended()
        globals_ = starlark.Globals.extended_by([starlark.LibraryExtension.StructType])
        text = PRELUDE + path.read_text()
        loader = starlark.FileLoader(lambda asked: self._evaluate(path.parent / asked))
        try:
            starlark.eval(module, starlark.parse(str(path), text, dialect), globals_, loader)
        except starlark.StarlarkError as error:
            if "refused: " in str(error):
                raise RefusedError(str(error)) from error
            raise
        return module.freeze()

    def _functions(self) -> dict[str, Callable[..., Any]]:
        def record(name: str, signature: Callable[..., None]) -> Callable[..., Any]:
            accepts = inspect.signature(signature)

            def call(*positional: Any, **named: Any) -> dict[str, Any]:
                bound = accepts.bind(*positional, **named)
                given = dict(bound.arguments)
                self.calls.append((name, given))
                return {"call": name, **given}

            return call

        def refuse(msg: str) -> None:
            raise RefusedError(f"refused: {msg}")

        def define(name: str, args: bool = False, usage: str = "") -> None:
            self.defined.add(name)

        def parse() -> dict[str, object]:
            unknown = set(self.options) - self.defined
            if unknown:
                raise RefusedError(f"refused: unknown option {unknown}")
            return self.options

        def kustomize(pathToDir: str) -> str:  # noqa: N803 Tilt's name
            made = subprocess.run(
                [str(Path(sys.executable).parent / "kubectl"), "kustomize", str(ROOT / pathToDir)],
                capture_output=True,
                text=True,
                check=True,
            )
            return made.stdout

        return {
            "fail": refuse,
            "k8s_context": lambda: self.context,
            "_config_define_bool": define,
            "_config_define_string": define,
            "_config_parse": parse,
            "kustomize": kustomize,
            "decode_yaml_stream": lambda text: [d for d in yaml.safe_load_all(text) if d],
            "encode_yaml_stream": lambda objects: yaml.safe_dump_all(objects),
            **{name: record(name, signature) for name, signature in SIGNATURES.items()},
        }


def _allow_k8s_contexts(contexts: Any) -> None: ...
def _k8s_yaml(yaml: Any, allow_duplicates: bool = False) -> None: ...
def _port_forward(
    local_port: int, container_port: Any = None, name: Any = None, link_path: Any = None, host: Any = None
) -> None: ...
def _link(url: str, name: Any = None) -> None: ...
def _fall_back_on(files: Any) -> None: ...
def _sync(local_path: str, remote_path: str) -> None: ...
def _exec_action(command: list[str]) -> None: ...
def _http_get_action(port: int, host: Any = None, scheme: Any = None, path: Any = None) -> None: ...
def _probe(
    initial_delay_secs: int = 0,
    timeout_secs: int = 1,
    period_secs: int = 10,
    success_threshold: int = 1,
    failure_threshold: int = 3,
    exec: Any = None,  # noqa: A002 Tilt's name
    http_get: Any = None,
    tcp_socket: Any = None,
) -> None: ...
def _docker_build(
    ref: str,
    context: str,
    build_args: Any = None,
    dockerfile: Any = "Dockerfile",
    dockerfile_contents: Any = None,
    live_update: Any = None,
    match_in_env_vars: bool = False,
    ignore: Any = None,
    only: Any = None,
    entrypoint: Any = None,
    target: Any = None,
    ssh: Any = None,
    network: Any = None,
    secret: Any = None,
    extra_tag: Any = None,
    container_args: Any = None,
    cache_from: Any = None,
    pull: bool = False,
    platform: Any = None,
    extra_hosts: Any = None,
) -> None: ...
def _k8s_resource(
    workload: str,
    new_name: Any = None,
    port_forwards: Any = None,
    extra_pod_selectors: Any = None,
    trigger_mode: Any = None,
    resource_deps: Any = None,
    objects: Any = None,
    auto_init: bool = True,
    pod_readiness: Any = None,
    links: Any = None,
    labels: Any = None,
    discovery_strategy: Any = None,
) -> None: ...
def _local_resource(
    name: str,
    cmd: Any = None,
    deps: Any = None,
    trigger_mode: Any = None,
    resource_deps: Any = None,
    ignore: Any = None,
    auto_init: bool = True,
    serve_cmd: Any = None,
    cmd_bat: Any = None,
    serve_cmd_bat: Any = None,
    allow_parallel: bool = False,
    links: Any = None,
    labels: Any = None,
    env: Any = None,
    serve_env: Any = None,
    readiness_probe: Any = None,
    dir: Any = None,  # noqa: A002 Tilt's name
    serve_dir: Any = None,
) -> None: ...


SIGNATURES: dict[str, Callable[..., None]] = {
    "allow_k8s_contexts": _allow_k8s_contexts,
    "k8s_yaml": _k8s_yaml,
    "port_forward": _port_forward,
    "link": _link,
    "fall_back_on": _fall_back_on,
    "sync": _sync,
    "exec_action": _exec_action,
    "http_get_action": _http_get_action,
    "probe": _probe,
    "docker_build": _docker_build,
    "k8s_resource": _k8s_resource,
    "local_resource": _local_resource,
}


def evaluated(options: dict[str, object] | None = None, context: str = "kind-kgents") -> Tilt:
    tilt = Tilt(options or {}, context)
    tilt.run()
    return tilt


@pytest.fixture(scope="module")
def on_cluster() -> Tilt:
    return evaluated()


@pytest.fixture(scope="module")
def as_processes() -> Tilt:
    return evaluated({"no-cluster": True})


@pytest.mark.parametrize("context", ["prod-eu", "arn:aws:eks:x", "gke_a_b_c", "kindly", ""])
def test_a_context_that_is_not_a_laptops_is_refused(context: str) -> None:
    """Rule: production is not touched by `tilt up`; the error says what to do instead."""
    with pytest.raises(RefusedError, match="--no-cluster"):
        evaluated(context=context)


@pytest.mark.parametrize("context", ["kind-a", "k3d-b", "minikube", "docker-desktop"])
def test_a_laptops_cluster_is_taken(context: str) -> None:
    """Rule: and only that one is allowed."""
    assert evaluated(context=context).of("allow_k8s_contexts") == [{"contexts": context}]


def test_a_wrong_option_is_a_clear_error() -> None:
    """Rule: an unknown service, and an unknown option."""
    with pytest.raises(RefusedError, match=r"unknown.*api"):
        evaluated({"only": "meterin"})
    with pytest.raises(RefusedError, match="unknown option"):
        evaluated({"no-clusters": True})


def test_every_path_that_is_named_exists(on_cluster: Tilt, as_processes: Tilt) -> None:
    """Rule: a source, a Dockerfile, a manifest that moved is seen here."""
    named: list[str] = []
    for build in on_cluster.of("docker_build"):
        named += [build["context"], build["dockerfile"], *build["only"]]
        for step in build.get("live_update", ()):
            named += [step["local_path"]] if step["call"] == "sync" else step["files"]
    for resource in as_processes.of("local_resource"):
        named += resource.get("deps", [])
    assert len(named) > 30
    assert [path for path in named if not (ROOT / path).exists()] == []


def test_every_image_of_ours_in_the_manifests_is_built(on_cluster: Tilt) -> None:
    """Rule: what the overlay runs of ours comes from this tree; each target is one of the Dockerfile's."""
    [applied] = on_cluster.of("k8s_yaml")
    images = {
        line.split("image:")[1].strip().strip("'\"").split(":")[0]
        for line in applied["yaml"].splitlines()
        if "image:" in line and "kgents/" in line
    }
    built = {build["ref"] for build in on_cluster.of("docker_build")}
    assert images
    assert images <= built
    targets = {build["target"] for build in on_cluster.of("docker_build") if "target" in build}
    assert all(f" AS {target}\n" in (ROOT / "Dockerfile").read_text() for target in targets)


def test_every_resource_is_a_workload_of_the_overlay(on_cluster: Tilt) -> None:
    """Rule: and waits for workloads that are there; the services wait for the streams."""
    [applied] = on_cluster.of("k8s_yaml")
    there = {
        found["metadata"]["name"]
        for found in yaml.safe_load_all(applied["yaml"])
        if found["kind"] in ("Deployment", "StatefulSet", "Job")
    }
    resources = {resource["workload"]: resource for resource in on_cluster.of("k8s_resource")}
    assert set(resources) == there
    for resource in resources.values():
        assert set(resource["resource_deps"]) <= there
        assert resource["labels"][0] in ("gateway", "services", "streams", "data", "observability")
    assert "kgents-streams" in resources["kgent-api"]["resource_deps"]


def test_a_live_update_covers_every_file_of_a_service_and_its_library(on_cluster: Tilt) -> None:
    """Rule: each package of a service is synced whole, and a change of the lock is a rebuild."""
    for build in on_cluster.of("docker_build"):
        if "live_update" not in build:
            continue
        steps = build["live_update"]
        assert steps[0]["call"] == "fall_back_on"
        assert {"uv.lock", "pyproject.toml"} <= set(steps[0]["files"])
        synced = [ROOT / step["local_path"] for step in steps[1:]]
        service = build["ref"].split("/")[1]
        for source in (ROOT / "services" / service / "src", ROOT / "libs" / "common" / "src"):
            files = list(source.rglob("*.py"))
            assert files
            assert all(any(path.is_relative_to(top) for top in synced) for path in files)
        for step in steps[1:]:
            assert step["remote_path"].endswith(Path(step["local_path"]).name)


def test_an_image_is_built_with_its_source(on_cluster: Tilt) -> None:
    """Rule: a pod has its code before anything is synced into it: no source is left out of a build."""
    bases = [build for build in on_cluster.of("docker_build") if "target" in build]
    assert len(bases) == 4
    for build in bases:
        assert not build.get("ignore")
        assert {f"services/{build['target']}", "libs/common"} <= set(build["only"])
    for build in on_cluster.of("docker_build"):
        if "target" not in build:
            assert build["build_args"]["IMAGE"] in {base["ref"] for base in bases}


def test_processes_are_the_devstacks_and_wait_for_its_servers(as_processes: Tilt) -> None:
    """Rule: every service has its process, its port, its readiness and its source."""
    resources = {resource["name"]: resource for resource in as_processes.of("local_resource")}
    assert set(EVERYTHING) <= set(resources)
    for name in EVERYTHING:
        one = resources[name]
        assert one["serve_cmd"] == f".venv/bin/python -m kgents_devstack service {name}"
        assert one["resource_deps"] == ["servers"]
        assert one["readiness_probe"]["http_get"]["port"] == SERVICES[name]
        assert "libs/common/src" in one["deps"]
    [link] = resources["api"]["links"]
    assert str(OPERATIONS["api"]) in link["url"]


def test_every_command_of_a_button_exists(as_processes: Tilt, on_cluster: Tilt) -> None:
    """Rule: a make target, a folder of tests, a control of the devstack."""
    makefile = (ROOT / "Makefile").read_text()
    for resource in (*as_processes.of("local_resource"), *on_cluster.of("local_resource")):
        command = str(resource.get("cmd") or "")
        if command.startswith("make "):
            assert f"\n{command.split()[1]}:" in makefile
        elif "-m pytest" in command:
            assert (ROOT / command.split()[-1]).is_dir()
        elif "-m kgents_devstack" in command:
            assert command.split()[3] in CONTROLS
    manual = [r for r in as_processes.of("local_resource") if r.get("trigger_mode") == "manual"]
    assert len(manual) > 10
    assert all(resource["auto_init"] is False for resource in manual)


def test_one_service_from_source_leaves_the_rest_to_the_servers() -> None:
    """Rule: `--only metering` runs that one under Tilt, and the servers run all the others."""
    tilt = evaluated({"only": "metering"})
    resources = {resource["name"]: resource for resource in tilt.of("local_resource")}
    assert resources["servers"]["serve_cmd"].endswith("servers --without metering")
    assert set(EVERYTHING) & set(resources) == {"metering"}
