"""launch.gke: the JobSet, against the schemas of Kubernetes and of JobSet, and its commands."""

import json
import re
import subprocess

import kubernetes_validate
import pytest
import yaml
from kubeflow_trainer_api import models

from dimo_jax.common.errors import InputError
from launch import gke
from tests.helpers.launch_scripts import AWKWARD, LAUNCH, put

TPU = ["--tpu=v5e:4x4"]
GPU = ["--gpu=nvidia-h100-80gb", "--hosts=2"]
SIDECARS = """\
# GPUDirect's daemon
- name: tcpxo-daemon
  image: registry/tcpgpudmarxd:1
  restartPolicy: Always
  command:
    - /bin/sh
    - -c
    - |
      set -ex
      exec rxdm "$@"
  volumeMounts: [{name: sys, mountPath: /hostsysfs}]
"""
INTERFACES = '[{"interfaceName": "eth0"},\n {"interfaceName": "eth1"}]'
EXTRAS = [
    "--annotation=networking.gke.io/default-interface=eth0",
    f"--annotation=networking.gke.io/interfaces={INTERFACES}",
    "--host_volume=sys=/sys",
    "--host_volume=nvidia=/home/kubernetes/bin/nvidia:/usr/local/nvidia",
    "--node_selector=cloud.google.com/gke-spot=true",
    "--label=kueue.x-k8s.io/queue-name=queue",
    '--env=TITLE=it\'s $(HOME) "x"',
    "--claim=data:/mnt/a b",
    "--claim=more:/more",
    "--service_account=runner",
]


def created(*flags, program=("--config=c", "--workdir=gs://b/r")):
    """The JobSet that `start` gives to kubectl."""
    words = ["start", "--name=dimo", "--image=registry/dimo:1", *flags, "--", *program]
    return json.loads(json.dumps(gke.jobset(gke.read_flags(words))))


def job_of(jobset):
    (replicated,) = jobset["spec"]["replicatedJobs"]
    return replicated["template"]["spec"]


def container_of(jobset):
    (container,) = job_of(jobset)["template"]["spec"]["containers"]
    return container


def expanded(text, variables):
    """$(NAME) and $$ in a container's arguments, by the rules of the Kubernetes API reference."""
    return re.sub(
        r"\$\$|\$\((\w+)\)",
        lambda m: "$" if m[0] == "$$" else variables.get(m[1], m[0]),
        text,
    )


@pytest.fixture
def sidecars(tmp_path):
    """The flag that names a file of side-cars."""
    # Without the last line's end, as some editors leave it.
    return f"--sidecars={put(tmp_path / 'side cars.yaml', SIDECARS.rstrip())}"


@pytest.mark.parametrize("flags", [TPU, GPU, [*TPU, *EXTRAS], [*GPU, *EXTRAS]])
def test_the_jobset_fits_the_schemas(flags, sidecars):
    jobset = created(*flags, sidecars, program=AWKWARD)
    kind = {"apiVersion": "batch/v1", "kind": "Job", "metadata": {"name": "job"}}
    kubernetes_validate.validate(kind | {"spec": job_of(jobset)}, "1.31", strict=True)
    # The models drop the fields that they do not know.
    assert models.JobsetV1alpha2JobSet.from_dict(jobset).to_dict() == jobset


@pytest.mark.parametrize(
    "flags, hosts, chips, accelerator",
    [
        # Chips and hosts as in Google's tables of slices.
        (["--tpu=v5e:4x4"], 4, 4, "tpu-v5-lite-podslice"),
        (["--tpu=v5e:16x16"], 64, 4, "tpu-v5-lite-podslice"),
        (["--tpu=v5e:2x4"], 1, 8, "tpu-v5-lite-podslice"),
        (["--tpu=v5e:2x4", "--chips_per_host=4"], 2, 4, "tpu-v5-lite-podslice"),
        (["--tpu=v5e:1x1"], 1, 1, "tpu-v5-lite-podslice"),
        (["--tpu=v4:2x2x4"], 4, 4, "tpu-v4-podslice"),
        (["--tpu=v5p:2x2x2"], 2, 4, "tpu-v5p-slice"),
        (["--tpu=v6e:8x8", "--num_slices=3"], 16, 4, "tpu-v6e-slice"),
    ],
)
def test_a_slice_gets_a_pod_for_each_of_its_hosts(flags, hosts, chips, accelerator):
    jobset = created(*flags)
    job, container = job_of(jobset), container_of(jobset)
    assert job["parallelism"] == job["completions"] == hosts
    (slices,) = [each["replicas"] for each in jobset["spec"]["replicatedJobs"]]
    assert slices == (3 if "--num_slices=3" in flags else 1)
    assert container["resources"] == {"limits": {"google.com/tpu": chips}}
    assert job["template"]["spec"]["nodeSelector"] == {
        "cloud.google.com/gke-tpu-accelerator": accelerator,
        "cloud.google.com/gke-tpu-topology": flags[0].partition(":")[2],
    }
    # JAX finds the peers of a slice itself.
    assert container["args"] == "python -m dimo_jax.main --config=c --workdir=gs://b/r".split()
    assert jobset["metadata"]["annotations"] == {
        "alpha.jobset.sigs.k8s.io/exclusive-topology": "cloud.google.com/gke-nodepool"
    }


def test_each_gpu_node_knows_its_place():
    jobset = created("--gpu=nvidia-h100-80gb", "--hosts=3", "--gpus_per_host=4")
    job, container = job_of(jobset), container_of(jobset)
    assert (job["parallelism"], job["completions"], job["completionMode"]) == (3, 3, "Indexed")
    assert container["resources"] == {"limits": {"nvidia.com/gpu": 4}}
    selector = job["template"]["spec"]["nodeSelector"]
    assert selector == {"cloud.google.com/gke-accelerator": "nvidia-h100-80gb"}
    # The Job controller sets the variable; pod 0 of job 0 answers to this name.
    (name,) = {replicated["name"] for replicated in jobset["spec"]["replicatedJobs"]}
    assert [expanded(a, {"JOB_COMPLETION_INDEX": "2"}) for a in container["args"][3:]] == [
        *("--config=c", "--workdir=gs://b/r"),
        f"--coordinator=dimo-{name}-0-0.dimo:8476",
        *("--num_processes=3", "--process_id=2"),
    ]
    assert {"name": "shm", "emptyDir": {"medium": "Memory"}} in job["template"]["spec"]["volumes"]
    assert created("--gpu=any")["spec"]["replicatedJobs"][0]["template"]["spec"]["parallelism"] == 1


@pytest.mark.parametrize("flags", [TPU, GPU])
def test_awkward_arguments_survive_yaml_and_kubernetes(flags):
    container = container_of(created(*flags, *EXTRAS, program=AWKWARD))
    variables = {"JOB_COMPLETION_INDEX": "0", "HOME": "wrong"}
    given = [expanded(a, variables) for a in container["args"]]
    assert given[3 : 3 + len(AWKWARD)] == AWKWARD
    assert container["env"] == [{"name": "TITLE", "value": 'it\'s $$(HOME) "x"'}]
    assert expanded(container["env"][0]["value"], variables) == 'it\'s $(HOME) "x"'
    mounts = [m for m in container["volumeMounts"] if m["name"].startswith("claim")]
    assert [m["mountPath"] for m in mounts] == ["/mnt/a b", "/more"]


def test_extras_reach_their_places():
    jobset = created(*TPU, *EXTRAS, "--grace_s=77", "--max_restarts=2")
    pod = job_of(jobset)["template"]["spec"]
    assert jobset["metadata"]["labels"] == {"kueue.x-k8s.io/queue-name": "queue"}
    assert pod["nodeSelector"]["cloud.google.com/gke-spot"] == "true"
    assert pod["serviceAccountName"] == "runner"
    assert pod["terminationGracePeriodSeconds"] == 77
    volumes = {v["name"]: v for v in pod["volumes"]}
    claims = [volumes[f"claim-{i}"]["persistentVolumeClaim"]["claimName"] for i in range(2)]
    assert claims == ["data", "more"]
    assert jobset["spec"]["failurePolicy"]["maxRestarts"] == 2


def test_what_gpudirect_needs_reaches_the_pods(sidecars):
    template = job_of(created(*GPU, *EXTRAS, sidecars))["template"]
    assert template["metadata"]["annotations"] == {
        "networking.gke.io/default-interface": "eth0",
        "networking.gke.io/interfaces": INTERFACES,
    }
    pod = template["spec"]
    # Side-cars that end with the program: Kubernetes waits for other containers for ever.
    assert pod["initContainers"] == yaml.safe_load(SIDECARS)
    paths = {v["name"]: v["hostPath"]["path"] for v in pod["volumes"] if "hostPath" in v}
    assert paths == {"sys": "/sys", "nvidia": "/home/kubernetes/bin/nvidia"}
    mounts = {m["name"]: m["mountPath"] for m in pod["containers"][0]["volumeMounts"]}
    assert mounts["nvidia"] == "/usr/local/nvidia" and "sys" not in mounts
    plain = job_of(created(*GPU))["template"]
    assert "initContainers" not in plain["spec"] and plain["metadata"]["annotations"] == {}


@pytest.mark.parametrize(
    ("flags", "user", "group"),
    [
        (GPU, 1000, 1000),
        (TPU, 0, 0),
        ([*TPU, "--run_as=7:8"], 7, 8),
        ([*GPU, "--run_as=0:9"], 0, 9),
    ],
)
def test_the_user_in_the_pods(flags, user, group):
    jobset = created(*flags)
    security = container_of(jobset)["securityContext"]
    assert (security["runAsUser"], security["runAsGroup"]) == (user, group)
    # A claim's files are the group's; side-cars keep their own user.
    assert job_of(jobset)["template"]["spec"]["securityContext"] == {"fsGroup": group}
    assert ("capabilities" in security) == (flags[0] in TPU)


def test_a_preemption_restarts_without_limit_and_a_failure_with_one():
    jobset = created(*TPU)
    job = job_of(jobset)
    # The first pod that fails fails the job, and for these two causes with reason PodFailurePolicy.
    assert job["backoffLimit"] == 0
    exit_code, disruption = job["podFailurePolicy"]["rules"]
    assert exit_code["onExitCodes"]["values"] == [143]
    assert exit_code["onExitCodes"]["containerName"] == container_of(jobset)["name"]
    assert disruption["onPodConditions"] == [{"type": "DisruptionTarget", "status": "True"}]
    assert exit_code["action"] == disruption["action"] == "FailJob"
    (rule,) = jobset["spec"]["failurePolicy"]["rules"]
    assert rule["action"] == "RestartJobSetAndIgnoreMaxRestarts"
    assert rule["onJobFailureReasons"] == ["PodFailurePolicy"]
    assert job["template"]["spec"]["restartPolicy"] == "Never"  # podFailurePolicy's condition


def planned(*words):
    return gke.commands(gke.read_flags(words))


def test_kubectl_is_given_this_run_only():
    named = ["--name=dimo", "--namespace=team"]
    kubectl = ["kubectl", "--namespace=team"]
    selector = "--selector=jobset.sigs.k8s.io/jobset-name=dimo"
    logs = [*kubectl, "logs", selector, "--prefix", "--max-log-requests=1000"]
    assert planned("status", *named) == [
        [*kubectl, "get", "jobset", "dimo"],
        [*kubectl, "get", "pods", selector, "--output=wide"],
    ]
    assert planned("logs", "--lines=7", *named) == [[*logs, "--tail=7"]]
    assert planned("logs", "--follow", *named) == [[*logs, "--follow", "--tail=-1"]]
    assert planned("stop", *named) == [[*kubectl, "delete", "jobset", "dimo"]]
    elsewhere = planned("stop", "--name=dimo", "--context=a b")
    assert elsewhere == [["kubectl", "--context=a b", "delete", "jobset", "dimo"]]


def test_the_image_holds_what_the_pod_runs():
    build, push = planned("build", "--image=registry/dimo:1", *GPU)
    assert build == [
        *("docker", "build", f"--file={LAUNCH}/Dockerfile", "--build-arg=EXTRA=cuda13,gs"),
        *("--tag=registry/dimo:1", str(LAUNCH.parent)),
    ]
    assert push == ["docker", "push", "registry/dimo:1"]
    assert "--build-arg=EXTRA=tpu" in planned("build", "--image=i")[0]
    assert container_of(created(*TPU))["command"] == ["bash", "launch/pod.sh"]
    copied = re.findall(r"^COPY (.*) \S+$", (LAUNCH / "Dockerfile").read_text(), re.MULTILINE)
    assert {"launch", "dimo_jax"} <= {*" ".join(copied).split()}


def test_pasting_a_dry_run_gives_kubectl_the_jobset(capfd):
    words = ["start", "--name=dimo", "--image=i", *TPU, *EXTRAS, "--", *AWKWARD, "1e3", "$HOME"]
    gke.main([*words[:1], "--dry-run", *words[1:]])
    tool = 'kubectl() { [ "$*" = "create --filename=-" ] && cat; }'
    pasted = f"{tool}\n{capfd.readouterr().out}"
    done = subprocess.run(["bash", "-c", pasted], capture_output=True, text=True, check=True)
    assert json.loads(done.stdout) == gke.jobset(gke.read_flags(words))
    # To kubectl, whose YAML knows more numbers than PyYAML's, all texts must be in quotes.
    assert '"1e3"' in done.stdout


def test_a_work_directory_that_ends_with_its_pod_is_remarked(capsys):
    words = ["start", "--name=dimo", "--image=i", "--gpu=any", "--dry-run"]
    gke.main([*words, "--", "--workdir=runs/a"])
    assert "neither on gs:// nor on a --claim" in capsys.readouterr().err
    gke.main([*words, "--claim=data:/data", "--", "--workdir=/data/a"])
    gke.main([*words, "--", "--workdir=gs://b/a"])
    assert not capsys.readouterr().err


START = ["start", "--name=dimo", "--image=i"]


@pytest.mark.parametrize(
    "words, complaint",
    [
        ([*START, "--", "a"], "--tpu=VERSION:TOPOLOGY or --gpu=TYPE"),
        ([*START, "--tpu=v5e:4x4", "--hosts=2", "--", "a"], "--tpu excludes"),
        ([*START, "--tpu=v5e", "--", "a"], "not VERSION:TOPOLOGY"),
        ([*START, "--tpu=v9:4x4", "--", "a"], "the versions are"),
        ([*START, "--tpu=v5e:3x3", "--", "a"], "--chips_per_host=4 does not divide 9"),
        ([*START, "--tpu=v5litepod:4x4", "--", "a"], "--tpu=v5e:4x4"),
        ([*START, "--tpu=v5e:4x4", "--num_slices=0", "--", "a"], "not a whole number from 1"),
        ([*START, "--gpu=any", "--num_slices=2", "--", "a"], "--hosts"),
        ([*START, "--gpu=any", "--annotation=a", "--", "a"], "not KEY=VALUE"),
        ([*START, "--gpu=any", "--host_volume=/a", "--", "a"], "not NAME=/PATH"),
        ([*START, "--gpu=any", "--run_as=me", "--", "a"], "not UID:GID"),
        ([*START, "--gpu=any", "--sidecars=/none", "--", "a"], "No such file"),
        ([*START, "--gpu=any", "--env=A", "--", "a"], "'A' is not KEY=VALUE"),
        ([*START, "--gpu=any", "--claim=c", "--", "a"], "not CLAIM:/PATH"),
        (["start", "--name=dimo", "--gpu=any", "--", "a"], "--image is missing"),
        (["stop"], "--name is missing"),
        (["stop", "--name=" + 41 * "a"], "40 at most"),
        (["launch", "--name=a"], "'launch'"),
        ([], "COMMAND"),
    ],
)
def test_bad_input_is_one_sentence(words, complaint):
    with pytest.raises(InputError, match=re.escape(complaint)) as refused:
        gke.main([*words[:1], "--dry-run", *words[1:]])
    assert len(str(refused.value).splitlines()) == 1


@pytest.mark.parametrize("text", ["name: a", "- [a", "- {name: a, value: 2020-01-01}", ""])
def test_sidecars_are_a_list_of_containers(tmp_path, text):
    flags = [*TPU, f"--sidecars={put(tmp_path / 'file', text)}"]
    with pytest.raises(InputError, match=r"--sidecars=.* (cannot be read|not a YAML list)"):
        created(*flags)
