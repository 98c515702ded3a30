"""gke.sh: what kubectl is given, checked against Kubernetes' own schema, and pod.sh."""

import re
import signal

import kubernetes_validate
import pytest
import yaml
from kubeflow_trainer_api import models

from tests.helpers.launch_scripts import (
    AWKWARD,
    LAUNCH,
    arguments,
    calls,
    environment,
    install,
    put,
    run,
    start,
)

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


@pytest.fixture
def kubectl(tmp_path):
    """(environment, record) with a kubectl that keeps its stdin in $RECORD.stdin."""
    body = 'open(os.environ["RECORD"] + ".stdin", "w").write(sys.stdin.read())'
    install(tmp_path / "bin", "kubectl", body)
    return environment(tmp_path, tmp_path / "bin"), tmp_path / "record"


@pytest.fixture
def created(kubectl, tmp_path):
    """created(*flags): the JobSet that `gke.sh start` gives to kubectl."""
    variables, _ = kubectl

    def created(*flags, program=("--config=c", "--workdir=gs://b/r")):
        words = [
            "gke.sh",
            "start",
            "--name=dimo",
            "--image=registry/dimo:1",
            *flags,
            "--",
            *program,
        ]
        run(*words, env=variables)
        return yaml.safe_load((tmp_path / "record.stdin").read_text())

    return created


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
def test_the_job_fits_kubernetes_schema(created, flags, sidecars):
    jobset = created(*flags, sidecars, program=AWKWARD)
    kind = {"apiVersion": "batch/v1", "kind": "Job", "metadata": {"name": "job"}}
    kubernetes_validate.validate(kind | {"spec": job_of(jobset)}, "1.31", strict=True)


@pytest.mark.parametrize("flags", [TPU, GPU, [*TPU, *EXTRAS], [*GPU, *EXTRAS]])
def test_the_jobset_fits_its_own_api(created, flags, sidecars):
    # The models drop the fields that they do not know.
    jobset = created(*flags, sidecars, program=AWKWARD)
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
        (["--tpu=v6e:8x8"], 16, 4, "tpu-v6e-slice"),
    ],
)
def test_a_slice_gets_a_pod_for_each_of_its_hosts(created, flags, hosts, chips, accelerator):
    jobset = created(*flags)
    job, container = job_of(jobset), container_of(jobset)
    assert job["parallelism"] == job["completions"] == hosts
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


def test_each_gpu_node_is_told_its_place(created):
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
def test_awkward_arguments_survive_yaml_and_kubernetes(created, flags):
    container = container_of(created(*flags, *EXTRAS, program=AWKWARD))
    variables = {"JOB_COMPLETION_INDEX": "0", "HOME": "wrong"}
    given = [expanded(a, variables) for a in container["args"]]
    assert given[3 : 3 + len(AWKWARD)] == AWKWARD
    assert container["env"] == [{"name": "TITLE", "value": 'it\'s $$(HOME) "x"'}]
    assert expanded(container["env"][0]["value"], variables) == 'it\'s $(HOME) "x"'
    mounts = [m for m in container["volumeMounts"] if m["name"].startswith("claim")]
    assert [m["mountPath"] for m in mounts] == ["/mnt/a b", "/more"]


def test_extras_reach_their_places(created):
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


def test_what_gpudirect_needs_reaches_the_pods(created, sidecars):
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
def test_the_user_in_the_pods(created, flags, user, group):
    jobset = created(*flags)
    security = container_of(jobset)["securityContext"]
    assert (security["runAsUser"], security["runAsGroup"]) == (user, group)
    # A claim's files are the group's; side-cars keep their own user.
    assert job_of(jobset)["template"]["spec"]["securityContext"] == {"fsGroup": group}
    assert ("capabilities" in security) == (flags[0] in TPU)


def test_the_image_runs_as_a_user_whom_the_pods_know():
    text = (LAUNCH / "Dockerfile").read_text()
    assert re.findall(r"^ARG (.ID)=(\d+)$", text, re.MULTILINE) == [
        ("UID", "1000"),
        ("GID", "1000"),
    ]
    assert text.rstrip().endswith("USER $UID:$GID")


def test_several_slices_are_a_job_each(created):
    jobset = created(*TPU, "--num_slices=3")
    (replicated,) = jobset["spec"]["replicatedJobs"]
    assert replicated["replicas"] == 3 and job_of(jobset)["parallelism"] == 4
    annotations = jobset["metadata"]["annotations"]
    assert annotations["alpha.jobset.sigs.k8s.io/exclusive-topology"] == (
        "cloud.google.com/gke-nodepool"
    )


def test_the_image_is_sent_what_it_copies_and_nothing_else():
    rules = [x for x in (LAUNCH.parent / ".dockerignore").read_text().splitlines() if x[0] != "#"]
    assert rules[0] == "*"
    sent = {rule[1:] for rule in rules if rule.startswith("!")}
    text = (LAUNCH / "Dockerfile").read_text()
    copied = {p for x in re.findall(r"^COPY (.*) \S+$", text, re.MULTILINE) for p in x.split()}
    assert sent == copied
    assert "**/__pycache__" in rules[1:]


def test_a_preemption_restarts_without_limit_and_a_failure_with_one(created):
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


def test_kubectl_is_asked_for_this_run_only(kubectl):
    variables, record = kubectl
    for words in (["status"], ["logs", "--lines=7"], ["stop"]):
        run("gke.sh", *words, "--name=dimo", "--namespace=team", env=variables)
    selector = "--selector=jobset.sigs.k8s.io/jobset-name=dimo"
    assert [a[1:] for a in arguments(record)] == [
        ["get", "jobset", "dimo"],
        ["get", "pods", selector, "--output=wide"],
        ["logs", selector, "--prefix", "--max-log-requests=1000", "--tail=7"],
        ["delete", "jobset", "dimo"],
    ]
    assert {a[0] for a in arguments(record)} == {"--namespace=team"}


def test_the_image_holds_what_the_pod_runs(created, tmp_path):
    install(tmp_path / "bin", "docker")
    variables = environment(tmp_path, tmp_path / "bin")
    run("gke.sh", "build", "--image=registry/dimo:1", *GPU, env=variables)
    build, push = arguments(tmp_path / "record", "docker")
    assert build == [
        *("build", f"--file={LAUNCH}/Dockerfile", "--build-arg=EXTRA=cuda13,gs"),
        *("--tag=registry/dimo:1", str(LAUNCH.parent)),
    ]
    assert push == ["push", "registry/dimo:1"]
    command = container_of(created(*TPU))["command"]
    assert command == ["bash", "launch/pod.sh"]
    copied = re.findall(r"^COPY (.*) \S+$", (LAUNCH / "Dockerfile").read_text(), re.MULTILINE)
    for path in " ".join(copied).split():
        assert (LAUNCH.parent / path).exists(), path
    assert {"launch", "configs", "dimo_jax"} <= {*" ".join(copied).split()}


def test_pod_sh_explains_itself():
    assert "launch/pod.sh python -m" in run("bash", LAUNCH / "pod.sh", "--help")
    for words in ([], ["--config=c"]):
        _, err = run("bash", LAUNCH / "pod.sh", *words, status=2)
        assert "a command is expected" in err and len(err.splitlines()) == 1


def pod(tmp_path, body):
    install(tmp_path / "bin", "program", body)
    return start(
        "bash", LAUNCH / "pod.sh", "program", *AWKWARD, env=environment(tmp_path, tmp_path / "bin")
    )


@pytest.mark.parametrize("status", [0, 1, 2])
def test_a_pods_status_is_the_programs(tmp_path, status):
    process = pod(tmp_path, f"sys.exit({status})")
    process.communicate(timeout=120)
    assert process.returncode == status
    assert calls(tmp_path / "record")[0]["arguments"] == AWKWARD


@pytest.mark.parametrize("status", [0, 1])
def test_a_pod_told_to_go_does_not_count_as_done(tmp_path, status):
    body = f"""
import signal, time
signals = []
signal.signal(signal.SIGTERM, lambda number, frame: signals.append(number))
print("ready", flush=True)
while not signals:
    time.sleep(0.02)
time.sleep(0.3)
print("saved", len(signals), flush=True)
sys.exit({status})
"""
    process = pod(tmp_path, body)
    assert process.stdout.readline() == "ready\n"
    process.send_signal(signal.SIGTERM)
    out, err = process.communicate(timeout=120)
    assert out == "saved 1\n", err
    assert process.returncode == 143
