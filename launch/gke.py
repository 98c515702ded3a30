r"""Run the program on Kubernetes, as a JobSet: on TPU slices or on GPU nodes.

python -m launch.gke start --name=dimo --image=IMAGE --tpu=v5e:4x4 -- \
    --config=configs/imagenet.py --workdir=gs://BUCKET/imagenet
python -m launch.gke start --name=dimo --image=IMAGE --gpu=nvidia-h100-80gb --hosts=2 -- ...

build    make the image from this checkout and push it
start    create the JobSet, on GKE or any cluster that has the JobSet controller
status   the JobSet and its pods
logs     the end of the pods' logs
stop     delete the JobSet: the program gets SIGTERM and saves; "start" goes on from there
"""

import argparse
import json
import math
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import yaml

from dimo_jax.common.errors import InputError
from launch.commands import COUNT, COUNT_OR_0, ROOT, Parser, Shell, launch, matching

NAME = matching(
    "[a-z]([a-z0-9-]{0,38}[a-z0-9])?",
    "a name: a letter first, then letters, digits and hyphens, all small, 40 at most",
)
SLICE = matching("[a-z0-9]+:[1-9][0-9]*(x[1-9][0-9]*){1,2}", "VERSION:TOPOLOGY, e.g. v5e:4x4")
PAIR = matching("[^=]+=.*", "KEY=VALUE")
CLAIM = matching("[^:]+:/.*", "CLAIM:/PATH")
FOLDER = matching("[a-z0-9-]+=/[^:]*(:/[^:]*)?", "NAME=/PATH or NAME=/PATH:/MOUNT")
USER = matching("[0-9]+:[0-9]+", "UID:GID, two numbers")
TPUS = {
    "v4": "tpu-v4-podslice",
    "v5e": "tpu-v5-lite-podslice",
    "v5p": "tpu-v5p-slice",
    "v6e": "tpu-v6e-slice",
}


class Hosts(NamedTuple):
    """The hosts of a slice, or all GPU nodes: how many, their devices, their nodes' labels."""

    count: int
    limits: dict[str, int]
    selector: dict[str, str]


def read_flags(arguments: Sequence[str]) -> argparse.Namespace:
    """Return the flags on a command line; an InputError refuses them."""
    parser = Parser("launch.gke", __doc__, ["build", "start", "status", "logs", "stop"])
    flag = parser.flag
    flag("name", "of the JobSet", NAME)
    flag("namespace", "kubectl's")
    flag("context", "kubectl's")
    flag("image", 'built by "build", or holding this checkout as its work directory')
    flag("tpu", "VERSION:TOPOLOGY: v4:2x2x4, v5e:4x4, v5p:2x2x2, v6e:8x8", SLICE)
    flag("num_slices", "of that shape, one run, joined by the data-centre network", COUNT, 1)
    flag("chips_per_host", "4; 8 or 1 for the v5e and v6e that fit one host", COUNT)
    flag("gpu", 'the label cloud.google.com/gke-accelerator; "any" for no label')
    flag("hosts", "GPU nodes (1)", COUNT)
    flag("gpus_per_host", "of each GPU node", COUNT, 8)
    flag("max_restarts", "after failures; preemptions do not count", COUNT_OR_0, 10)
    flag("grace_s", "seconds from SIGTERM to SIGKILL", COUNT, 300)
    flag("service_account", "the pods', for Workload Identity", default="default")
    flag("run_as", "UID:GID in the pods, owner of a claim (1000:1000; on TPUs 0:0)", USER)
    flag("node_selector", "KEY=VALUE, e.g. cloud.google.com/gke-spot=true", PAIR, [])
    flag("label", "KEY=VALUE of the JobSet, e.g. kueue.x-k8s.io/queue-name=Q", PAIR, [])
    flag("env", "KEY=VALUE of the program", PAIR, [])
    flag("annotation", "KEY=VALUE of the pods", PAIR, [])
    flag("claim", "CLAIM:PATH mounts a PersistentVolumeClaim", CLAIM, [])
    flag("host_volume", "NAME=PATH[:MOUNT], a node's folder: for side-cars, at MOUNT", FOLDER, [])
    flag("sidecars", "a file: a YAML list of initContainers with restartPolicy: Always")
    flag("python", "in the image", default="python")
    flag("lines", "for logs: how many of a pod", COUNT, 50)
    parser.switch("follow", "for logs: all as they come")
    flags = parser.read(arguments)
    required = {"build": ["image"], "start": ["name", "image"]}
    parser.require(flags, *required.get(flags.command, ["name"]))
    return flags


def hosts_of(flags: argparse.Namespace) -> Hosts:
    """Return the hosts that --tpu or --gpu describes; an InputError where they do not fit."""
    if not flags.tpu:
        if not flags.gpu:
            raise InputError("--tpu=VERSION:TOPOLOGY or --gpu=TYPE is missing; see --help")
        if flags.num_slices > 1:
            raise InputError("--num_slices is for --tpu; GPU nodes are counted by --hosts")
        selector = {} if flags.gpu == "any" else {"cloud.google.com/gke-accelerator": flags.gpu}
        return Hosts(flags.hosts or 1, {"nvidia.com/gpu": flags.gpus_per_host}, selector)
    if flags.gpu or flags.hosts:
        raise InputError("--tpu excludes --gpu and --hosts")
    version, _, topology = flags.tpu.partition(":")
    if version in ("v5litepod", "v5lite"):
        raise InputError(f"--tpu={flags.tpu}: that version is v5e here: --tpu=v5e:{topology}")
    if version not in TPUS:
        raise InputError(f"--tpu={flags.tpu}: the versions are {', '.join(TPUS)}")
    chips = math.prod(map(int, topology.split("x")))
    in_one_host = version in ("v5e", "v6e") and chips in (1, 8)
    per_host = flags.chips_per_host or (chips if in_one_host else 4)
    if chips % per_host:
        raise InputError(f"--tpu={flags.tpu}: --chips_per_host={per_host} does not divide {chips}")
    selector = {
        "cloud.google.com/gke-tpu-accelerator": TPUS[version],
        "cloud.google.com/gke-tpu-topology": topology,
    }
    return Hosts(chips // per_host, {"google.com/tpu": per_host}, selector)


def jobset(flags: argparse.Namespace) -> dict[str, Any]:
    """Return the JobSet: a job for each slice, with a pod on each host."""
    hosts = hosts_of(flags)
    # pod.sh ends with 143 after a SIGTERM to the pod, though the program saved and left with 0:
    # else Kubernetes would take this host's part for done.
    terminated = {"containerName": "dimo", "operator": "In", "values": [143]}
    disrupted = [{"type": "DisruptionTarget", "status": "True"}]
    rules = [
        {"action": "FailJob", "onExitCodes": terminated},
        {"action": "FailJob", "onPodConditions": disrupted},
    ]
    template = {
        "metadata": {"annotations": mapping(flags.annotation)},
        "spec": pod(flags, hosts),
    }
    job = {
        "parallelism": hosts.count,
        "completions": hosts.count,
        "completionMode": "Indexed",
        "backoffLimit": 0,
        "podFailurePolicy": {"rules": rules},
        "template": template,
    }
    # All pods are made anew together. A preemption does not count, a failure of the program does.
    preempted = {
        "name": "preempted",
        "action": "RestartJobSetAndIgnoreMaxRestarts",
        "onJobFailureReasons": ["PodFailurePolicy"],
    }
    # All pods on one slice, where several node pools have this shape.
    exclusive = {"alpha.jobset.sigs.k8s.io/exclusive-topology": "cloud.google.com/gke-nodepool"}
    return {
        "apiVersion": "jobset.x-k8s.io/v1alpha2",
        "kind": "JobSet",
        "metadata": {
            "name": flags.name,
            "labels": mapping(flags.label),
            "annotations": exclusive if flags.tpu else {},
        },
        "spec": {
            "failurePolicy": {"maxRestarts": flags.max_restarts, "rules": [preempted]},
            "replicatedJobs": [
                {"name": "host", "replicas": flags.num_slices, "template": {"spec": job}}
            ],
        },
    }


def pod(flags: argparse.Namespace, hosts: Hosts) -> dict[str, Any]:
    """Return the specification of each host's pod."""
    user, group = map(int, (flags.run_as or ("0:0" if flags.tpu else "1000:1000")).split(":"))
    security: dict[str, Any] = {"runAsUser": user, "runAsGroup": group}
    arguments = literal([flags.python, "-m", flags.module, *flags.program])
    volumes: list[dict[str, Any]] = []
    mounts = []
    if flags.tpu:  # JAX finds its peers by the variables that GKE sets
        security["capabilities"] = {"add": ["SYS_RESOURCE"]}  # for pod.sh's ulimit
    else:
        arguments += [
            f"--coordinator={flags.name}-host-0-0.{flags.name}:8476",
            f"--num_processes={hosts.count}",
            "--process_id=$(JOB_COMPLETION_INDEX)",
        ]
        volumes.append({"name": "shm", "emptyDir": {"medium": "Memory"}})
        mounts.append(("shm", "/dev/shm"))  # NCCL; the default is 64 MiB
    for number, claim in enumerate(flags.claim):
        name, _, path = claim.partition(":")
        source = {"persistentVolumeClaim": {"claimName": name}}
        volumes.append({"name": f"claim-{number}", **source})
        mounts.append((f"claim-{number}", path))
    for folder in flags.host_volume:
        name, path, mount = re.fullmatch("(.*?)=(.*?)(?::(.*))?", folder).groups()
        volumes.append({"name": name, "hostPath": {"path": path}})
        mounts += [(name, mount)] if mount else []
    env = [pair.partition("=") for pair in literal(flags.env)]
    container = {
        "name": "dimo",
        "image": flags.image,
        "command": ["bash", "launch/pod.sh"],
        "args": arguments,
        "env": [{"name": key, "value": value} for key, _, value in env],
        "resources": {"limits": hosts.limits},
        "securityContext": security,
        "volumeMounts": [{"name": name, "mountPath": path} for name, path in mounts],
    }
    return {
        "restartPolicy": "Never",
        "securityContext": {"fsGroup": group},
        # What saving a checkpoint may take; a spot node allows less.
        "terminationGracePeriodSeconds": flags.grace_s,
        "serviceAccountName": flags.service_account,
        "nodeSelector": hosts.selector | mapping(flags.node_selector),
        **({"initContainers": sidecars(flags.sidecars)} if flags.sidecars else {}),
        "containers": [container],
        "volumes": volumes,
    }


def sidecars(path: str) -> list[Any]:
    """Return the containers in a YAML file; an InputError if it holds something else."""
    try:
        found = yaml.safe_load(Path(path).read_text())
        json.dumps(found)  # no dates: kubectl wants them as texts, in quotes
    except (OSError, ValueError, TypeError, yaml.YAMLError) as error:
        text = " ".join(str(error).split())
        raise InputError(f"--sidecars={path} cannot be read: {text}") from error
    if not isinstance(found, list):
        raise InputError(f"--sidecars={path} is not a YAML list of containers")
    return found


def mapping(pairs: Sequence[str]) -> dict[str, str]:
    """Return KEY=VALUE, ... as a dict."""
    return {key: value for key, _, value in (pair.partition("=") for pair in pairs)}


def literal(words: Sequence[str]) -> list[str]:
    """Return words so that Kubernetes takes them as they are: it reads $$ as $, $(NAME) as NAME."""
    return [word.replace("$", "$$") for word in words]


def commands(flags: argparse.Namespace) -> list[list[str]]:
    """Return the commands of docker and kubectl; "start" has the JobSet as its input."""
    kubectl = ["kubectl"]
    kubectl += [f"--context={flags.context}"] if flags.context else []
    kubectl += [f"--namespace={flags.namespace}"] if flags.namespace else []
    selector = f"--selector=jobset.sigs.k8s.io/jobset-name={flags.name}"
    # kubectl follows 5 pods at most, unless it is given another number.
    logs = [*kubectl, "logs", selector, "--prefix", "--max-log-requests=1000"]
    extra = "cuda13,gs" if flags.gpu else "tpu"
    image = [f"--build-arg=EXTRA={extra}", f"--tag={flags.image}", str(ROOT)]
    return {
        "build": [
            ["docker", "build", f"--file={ROOT}/launch/Dockerfile", *image],
            ["docker", "push", flags.image],
        ],
        "start": [[*kubectl, "create", "--filename=-"]],
        "status": [
            [*kubectl, "get", "jobset", flags.name],
            [*kubectl, "get", "pods", selector, "--output=wide"],
        ],
        "logs": [logs + (["--follow", "--tail=-1"] if flags.follow else [f"--tail={flags.lines}"])],
        "stop": [[*kubectl, "delete", "jobset", flags.name]],
    }[flags.command]


def main(arguments: Sequence[str]) -> None:
    """Run or print what a command line says."""
    flags = read_flags(arguments)
    shell = Shell(flags.dry_run)
    planned, manifest = commands(flags), None
    if flags.command == "start":
        # JSON, which is YAML too: PyYAML writes the text 1e3 bare, a number to kubectl.
        manifest = json.dumps(jobset(flags), indent=2)
        if not flags.claim and not any(
            word.startswith("--workdir=gs://") for word in flags.program
        ):
            shell.note(
                "the work directory is neither on gs:// nor on a --claim: it ends with a pod"
            )
    for words in planned:
        shell.run(words, manifest)


if __name__ == "__main__":
    launch(main)
