"""pod.sh, which is the first process of a pod, and the image around it."""

import re
import signal

import pytest

from tests.helpers.launch_scripts import (
    AWKWARD,
    LAUNCH,
    calls,
    environment,
    install,
    run,
    start,
)


def test_the_image_runs_as_a_user_whom_the_pods_know():
    text = (LAUNCH / "Dockerfile").read_text()
    assert re.findall(r"^ARG (.ID)=(\d+)$", text, re.MULTILINE) == [
        ("UID", "1000"),
        ("GID", "1000"),
    ]
    assert text.rstrip().endswith("USER $UID:$GID")


def test_the_image_is_sent_what_it_copies_and_nothing_else():
    rules = [x for x in (LAUNCH.parent / ".dockerignore").read_text().splitlines() if x[0] != "#"]
    assert rules[0] == "*"
    sent = {rule[1:] for rule in rules if rule.startswith("!")}
    text = (LAUNCH / "Dockerfile").read_text()
    copied = {p for x in re.findall(r"^COPY (.*) \S+$", text, re.MULTILINE) for p in x.split()}
    assert sent == copied
    assert "**/__pycache__" in rules[1:]


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
